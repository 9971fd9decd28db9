"""Readers: whatever a model comes as -> `inst.backbone.parts.Parts`. None of them knows the backbone."""
