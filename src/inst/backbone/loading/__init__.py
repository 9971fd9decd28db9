"""Load `inst.backbone.parts.Parts` from folders, single files, the hub and pipelines, without the backbone."""
