from .table import load_metrics as load_metrics
