"""How good pictures are: the metrics and the networks behind them, and whole evaluations of folders.

`collection.collect` finds pictures with their photos and paintings, `metrics.load_metrics` loads what measures them,
`evaluate.evaluate` judges, and `report.write_reports` and `page.write_page` write what came out.
"""
