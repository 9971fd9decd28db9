"""Evaluation of pictures: the metrics, their networks, and the evaluation of whole folders.

`collection.collect` finds pictures with their photos and paintings, `metrics.table.load_metrics` loads the metrics,
`evaluate.evaluate` computes the scores, and `report.write_reports` and `page.write_page` write the results.
"""
