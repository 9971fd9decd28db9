"""InST: inversion-based style transfer with diffusion models (Zhang et al., CVPR 2023, arXiv 2211.13203).

`__init__.pyi` lists the public names. They are imported on first use, so that `import inst` does not import PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
