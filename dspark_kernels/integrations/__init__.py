"""Running the loop on models of other packages."""

EMBEDDED_MODEL = "smollm2-135m-instruct"  # see `loading.load_model`
