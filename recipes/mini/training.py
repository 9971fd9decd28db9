"""The training loop of every stage: the time box, EMA, checkpoints that resume exactly, and the log."""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from files import refuse_files
from inst.errors import InstError, UsageError
from inst.files.writing import write_bytes_atomically
from options import real_number, whole_number
from workers import Workers


class EMA:
    """Exponential moving average of a module's parameters, kept in fp32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = list(module.parameters())
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average toward the parameters. The first steps have more weight, which removes the random start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their average. A second call changes them back."""
        for parameter, average in zip(self.parameters, self.shadow, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


class TimeBox:
    """Measures a stage's progress, in [0, 1], by steps or minutes of training. Pauses between runs do not count."""

    def __init__(self, minutes: float | None, steps: int | None) -> None:
        if minutes is None and steps is None:
            raise UsageError("the stage has no end: give --minutes or --steps")
        self.seconds = math.inf if minutes is None else minutes * 60
        self.steps = math.inf if steps is None else steps
        self.spent = 0.0
        self._mark = 0.0

    def start(self) -> None:
        """Start counting, or start again: the time since the last tick was no training."""
        self._mark = time.monotonic()

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.monotonic()
        self.spent += now - self._mark
        self._mark = now

    def progress(self, step: int) -> float:
        """Return max(step / steps, seconds / budget), at most 1."""
        return min(1.0, max(step / self.steps, self.spent / self.seconds))


def learning_rate(progress: float, step: int, peak: float, warm: int = 200, floor: float = 0.01) -> float:
    """Return the learning rate: half a cosine from `peak` to `floor` * `peak`, with a linear warm-up of `warm` steps.

    The warm-up counts steps, not time, because compiling can take a fifth of a short run before the second step.
    """
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * cosine * min(1.0, (step + 1) / warm)


def optimiser(modules: Iterable[nn.Module], rate: float, decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW with weight decay for matrices and kernels only."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=parameters[0].is_cuda)


@dataclass
class Training:
    """The complete state of a run, saved as one safetensors file that is replaced in one step.

    Attributes:
        workers: the processes.
        folder: the folder for `checkpoint.safetensors`, `log.jsonl` and sheets.
        modules: the trained modules, by name.
        optimisers: their optimisers, by name.
        emas: their averages, by module name.
        generator: the source of all random numbers of the stage, on this process's device.
        box: the time box.
        settings: the settings that must be the same when the run is resumed; see `settings_of`.
    """

    workers: Workers
    folder: Path
    modules: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer]
    emas: Mapping[str, EMA]
    generator: torch.Generator
    box: TimeBox
    settings: Mapping[str, Any]
    step: int = 0
    stop: bool = False
    _log: dict[str, list[Tensor]] = field(default_factory=dict)
    _logged_at: tuple[int, float] = (0, 0.0)

    def __post_init__(self) -> None:
        refuse_files(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def state(self) -> dict[str, Tensor]:
        """Return every tensor of the run under a flat name."""
        out: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            out |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
        for name, ema in self.emas.items():
            out |= {f"ema/{name}/{k}": v for k, v in zip(ema.names, ema.shadow, strict=True)}
        for name, opt in self.optimisers.items():
            for index, values in opt.state_dict()["state"].items():
                out |= {f"optimiser/{name}/{index}/{k}": torch.as_tensor(v) for k, v in values.items()}
        for name, own in (("generator", self.generator.get_state()), ("dropout", _dropout_state(self.workers.device))):
            for rank, random_state in enumerate(self.workers.gather(own.to(self.workers.device))):
                out[f"random/{name}/{rank}"] = random_state
        return out

    def save(self) -> None:
        """Write the checkpoint. The old one stays until the new one is complete on disk.

        Raises:
            InstError: in every process, if a weight is not finite or the file cannot be written (for example on a full
                disk). The old checkpoint is unchanged.
        """
        weights = [p for module in self.modules.values() for p in module.parameters()]
        if self.workers.any(not all(bool(torch.isfinite(p).all()) for p in weights)):
            raise InstError(f"a weight is not finite at step {self.step}; {self._remedy()}")
        state = self.state()  # in every process: it gathers their random states
        about = {"step": self.step, "spent": self.box.spent, "world": self.workers.world, **self.settings}
        failure: InstError | None = None
        if self.workers.is_first:
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
            try:
                write_bytes_atomically(self.path, save(tensors, {"about": json.dumps(about)}))
            except InstError as error:
                failure = error
        if self.workers.any(failure is not None):
            raise failure or InstError("the first process could not write the checkpoint")

    def _remedy(self) -> str:
        if self.path.exists():
            return f"{self.path} holds the last good state: continue from it with a lower --rate"
        return "start again with a lower --rate"

    def resume(self) -> bool:
        """Continue exactly from the checkpoint in the folder. Returns False if there is none.

        Raises:
            InstError: the checkpoint is broken, or was made with other settings.
        """
        if not self.path.exists():
            return False
        try:
            with safe_open(self.path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except Exception as error:
            raise InstError(f"{self.path}: not a complete checkpoint; delete it to start again") from error
        for key, value in {**self.settings, "world": self.workers.world}.items():
            if about.get(key) != json.loads(json.dumps(value)):
                raise InstError(
                    f"{self.path}: was made with {key} = {about.get(key)}, not {value}; "
                    "use the same settings, or another --out to start again"
                )
        self.step, self.box.spent = about["step"], about["spent"]
        self._logged_at = (self.step, self.box.spent)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

        for name, module in self.modules.items():
            module.load_state_dict(part(f"module/{name}/"))
        for name, ema in self.emas.items():
            saved = part(f"ema/{name}/")
            for key, shadow in zip(ema.names, ema.shadow, strict=True):
                shadow.copy_(saved[key])
        for name, opt in self.optimisers.items():
            values: dict[int, dict[str, Tensor]] = {}
            for key, tensor in part(f"optimiser/{name}/").items():
                index, _, what = key.partition("/")
                values.setdefault(int(index), {})[what] = tensor
            opt.load_state_dict({"state": values, "param_groups": opt.state_dict()["param_groups"]})
            for parameter, moments in opt.state.items():
                for key, tensor in moments.items():
                    if tensor.shape == parameter.shape:  # the fused optimiser needs the parameter's memory layout
                        moments[key] = torch.empty_like(parameter).copy_(tensor)
        self.generator.set_state(state[f"random/generator/{self.workers.rank}"])
        on_gpu = self.workers.device.type == "cuda"
        (torch.cuda.set_rng_state if on_gpu else torch.set_rng_state)(state[f"random/dropout/{self.workers.rank}"])
        return True

    def run(
        self,
        advance: Callable[[float], Mapping[str, Tensor]],
        *,
        sheet: Callable[[Path], None],
        log_every: int,
        save_every_seconds: float,
    ) -> None:
        """Run the loop, with checkpoints and sheets. `advance(progress)` does one step and returns the values to log.

        The loop ends with a checkpoint when the time box is full, or after the step in which SIGINT or SIGTERM arrived.
        If a loss is not finite, it ends without one: the last good checkpoint stays.

        Raises:
            InstError: the run was interrupted, a loss is not finite, or a checkpoint could not be written.
        """
        if self.workers.is_first:
            self._cut_log()
        with self._stop_on_signals():
            self.box.start()
            saved_at, progress, first = self.box.spent, 0.0, self.step
            while True:
                # Several processes synchronise only every 8 steps, because they wait for each other.
                if self.workers.world == 1 or self.step % 8 == 0 or self.step in (first, self.box.steps):
                    overdue = self.box.spent - saved_at > save_every_seconds
                    progress, stop, save = self.workers.broadcast_values(
                        self.box.progress(self.step), self.stop, overdue
                    )
                    if progress >= 1 or stop or save:
                        self.save()
                        saved_at = self.box.spent
                        if self.workers.is_first and not stop:
                            self._draw(sheet)
                    if stop:
                        raise InstError(
                            f"interrupted after step {self.step}; run the same command again to resume {self.path}"
                        )
                    if progress >= 1:
                        return
                values = advance(progress)
                self.step += 1
                for ema in self.emas.values():
                    ema.update(self.step)
                for key, value in values.items():
                    self._log.setdefault(key, []).append(value.detach())
                self.box.tick()
                if self.step % log_every == 0:
                    self._write_log(progress)

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the loop after the step in which they arrive."""

        def receive(number: int, frame: object) -> None:
            self.stop = True

        old_handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)

    def _draw(self, sheet: Callable[[Path], None]) -> None:
        for ema in self.emas.values():
            ema.swap()
        sheet(self.folder / f"sheet-{self.step:07d}.png")
        for ema in self.emas.values():
            ema.swap()

    def _write_log(self, progress: float) -> None:
        means = {k: float(torch.stack([v.float() for v in vs]).mean()) for k, vs in self._log.items()}
        self._log.clear()
        bad = [k for k, v in means.items() if not math.isfinite(v)]
        if self.workers.any(bool(bad)):
            raise InstError(f"{' '.join(bad) or 'a loss'} is not finite at step {self.step}; {self._remedy()}")
        spent = self.box.spent
        steps, seconds = self.step - self._logged_at[0], spent - self._logged_at[1]
        self._logged_at = (self.step, spent)
        if not self.workers.is_first:
            return
        row = {"step": self.step, "seconds": round(spent, 1), "progress": round(progress, 4)}
        row |= {k: round(v, 5) for k, v in means.items()} | {"steps_a_second": round(steps / max(seconds, 1e-9), 3)}
        with self.log_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)

    def _cut_log(self) -> None:
        """Remove the rows of steps after the checkpoint, which are run again, and a row that a full disk cut off."""
        if not self.log_path.is_file():
            return
        lines = self.log_path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= self.step]
        if kept != lines:
            write_bytes_atomically(self.log_path, kept)


def _step_of(line: bytes) -> float:
    """Return the step of a row of the log, or infinity if the line is not such a row."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _dropout_state(device: torch.device) -> Tensor:
    """Return the state of the default generator of `device`, which dropout uses; uint8, on the CPU."""
    return torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()


def channels_last(module: nn.Module) -> None:
    """Convert the module's kernels to channels-last memory format, which is faster on tensor cores."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every stage."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards (*.tar)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and sheets")
    parser.add_argument("--minutes", type=real_number(zero=False), help="end after this many minutes of training")
    parser.add_argument("--steps", type=whole_number(1), help="end after this many steps")
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="random seed (default 0)")
    parser.add_argument(
        "--save-every", type=real_number(), default=120, help="seconds between checkpoints (default 120)"
    )
    parser.add_argument(
        "--log-every", type=whole_number(1), default=50, help="steps between lines of the log (default 50)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="do not use torch.compile (it is only faster on GPUs)"
    )
    return parser


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that must be the same in a resumed run: all except paths, durations and learning rate."""
    free = {"data", "out", "minutes", "steps", "save_every", "log_every", "no_compile", "rate", "sheet_steps"}
    return {k: str(v) for k, v in vars(options).items() if k not in free and not isinstance(v, Path)}
