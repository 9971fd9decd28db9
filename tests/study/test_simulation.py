"""87 people, 26 pairs each, through the real server, which is killed in the middle: every vote is there, none twice."""

from pathlib import Path

from inst.study.creation import create_study
from inst.study.database import Database
from inst.study.report import make_report
from inst.study.simulation import simulate
from study_server import write_comparison


def test_no_vote_is_lost_or_counted_twice(tmp_path: Path) -> None:
    photos = tuple(f"photo{number}" for number in range(4))
    folder = write_comparison(tmp_path / "comparison", photos, ("night", "tulips", "stars", "cafe"))
    list(create_study(folder, tmp_path / "study.db", side=64))
    found = simulate(tmp_path / "study.db", participants=87, at_once=20, kills=1, preference=0.7)
    assert found.kills == 1
    assert found.retries > 0
    assert found.votes == 87 * 26 == 2262
    assert found.acknowledged == found.kept >= 2262
    assert found.wrong == 0
    assert found.complete
    with Database(tmp_path / "study.db") as database:
        assert database.value("PRAGMA integrity_check") == "ok"
        assert database.value("SELECT count(*) FROM participants WHERE finished_at IS NOT NULL") == 87
        # 32 pairs, 2,262 times: each was shown about as often as each other. They began at once, so no closer.
        shown = [row[0] for row in database.rows("SELECT count(*) FROM trials GROUP BY pair")]
        assert max(shown) - min(shown) <= 2
        report = make_report(database)
    assert report.total.votes > 2000
    assert report.total.wilson is not None
    assert report.total.wilson[0] < 0.7 < report.total.wilson[1]
    assert set(report.scores) == {"subjects", "material", "brushstroke", "shapes", "ornament", "colour"}
