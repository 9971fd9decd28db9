"""InST: inversion-based style transfer with diffusion models (Zhang et al., CVPR 2023, arXiv 2211.13203).

The public names are those of `__init__.pyi`. They are imported on first use, so that `import inst` does not pay for
importing PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
