"""Stage 4: the fused ops and their pullbacks become kernels of the backend.

Backends without a kernel run the reference graph that each op carries.
"""
