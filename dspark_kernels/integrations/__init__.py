"""Running the loop on models of other packages."""
