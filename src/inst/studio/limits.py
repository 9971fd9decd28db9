"""What the studio allows: sizes, the queue, and the time of a job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The limits of a studio.

    Attributes:
        upload_bytes: largest size of an uploaded file in bytes.
        picture_pixels: largest number of pixels of an uploaded picture.
        side: largest short side of a result in pixels.
        count: largest number of pictures of one job.
        learning_steps: largest number of steps of one learning.
        queue: number of jobs that may wait.
        jobs_per_person: number of jobs of one person that wait, run or are paused.
        job_seconds: time on the device after which a job is stopped; a learning keeps its best style.
        keep_days: days after which ended and paused jobs, their files, and uploads are removed. Styles stay.
        disk_bytes: size of the data folder in bytes at which uploads and jobs are refused.
    """

    upload_bytes: int = 32 * 2**20
    picture_pixels: int = 60_000_000
    side: int = 2048
    count: int = 8
    learning_steps: int = 5000
    queue: int = 20
    jobs_per_person: int = 5
    job_seconds: float = 3600.0
    keep_days: float = 7.0
    disk_bytes: int = 20 * 2**30
