"""The definitions: every op in plain float32 PyTorch, written to be obviously right.

Tests, benchmarks and documentation measure every other backend against these functions. They take
the arguments of the op's schema, in its order, and import nothing but torch.
"""
