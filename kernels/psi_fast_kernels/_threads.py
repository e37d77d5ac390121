from psi_fast_kernels._compiled import over_threads  # noqa: F401

COMPILED = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
