from .pipeline import InSTPipeline as InSTPipeline
