"""Every stage from shards to a model that loads, on the CPU; interrupts, exact resume, processes, a full disk."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTokenizer

import autoencoder
import export
import files
import pair
import tokenizer
import training
import unet
import workers
from inst import Backbone
from inst.backbone.inversion import AttentionInversion
from inst.errors import InstError, UsageError
from inst.evaluation.metrics.lpips import LPIPS
from mini_stages import SMALL, unet_arguments

RECIPE = Path(autoencoder.__file__).parent


def test_every_stage_writes_a_log_and_sample_sheets(runs: Path) -> None:
    for stage in ("autoencoder", "pair", "unet"):
        assert len((runs / stage / "log.jsonl").read_text().splitlines()) in (2, 4)
        assert list((runs / stage).glob("sheet-*.png"))


def test_the_exported_model_loads_here_and_in_diffusers(runs: Path, tmp_path: Path) -> None:
    exported(runs, tmp_path / "tiny")
    backbone = Backbone.load(tmp_path / "tiny", device="cpu", dtype="float32")
    assert backbone.inversion is not None
    words = backbone.inversion(*backbone.embed_picture(torch.rand(1, 3, 224, 224) * 2 - 1))
    text = backbone.embed_text(["a river in the style of [C]"], {"[C]": words})
    assert backbone.predict_noise(torch.randn(1, 8, 8, 8), 500, text).isfinite().all()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "tiny", local_files_only=True)
    picture = pipeline("a river", num_inference_steps=2, height=64, width=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)


def test_nothing_is_replaced_by_an_export_that_fails(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "kept").touch()
    parts = {"unet": runs / "unet" / "unet", "vae": runs / "absent"}
    with pytest.raises(InstError, match="absent: no such folder; run the stage that writes it first"):
        export.export(parts, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["unet", "kept"]


@pytest.mark.parametrize(
    ("held", "at_fault"),
    [
        (["model_index.json", "notes.txt"], "notes.txt"),
        (["model_index.json", "unet/notes.md"], "unet/notes.md"),
        (["model_index.json", "photos/one.json"], "photos"),
        (["model_index.json", "unet/old/config.json"], "unet/old"),
        (["unet/config.json"], ""),
    ],
)
def test_an_export_refuses_to_replace_a_folder_with_anything_but_a_model(
    held: list[str], at_fault: str, runs: Path, tmp_path: Path
) -> None:
    for name in held:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("kept")
    with pytest.raises(UsageError, match="give --out another folder") as refused:
        exported(runs, tmp_path / "out")
    assert str(refused.value).startswith(f"{tmp_path / 'out' / at_fault}: ")
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.rglob("*") if p.is_file()) == sorted(held)


def test_an_export_over_a_file_is_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("kept")
    with pytest.raises(UsageError, match="out: is a file; give --out a new folder"):
        exported(runs, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "kept"


def test_an_export_replaces_an_earlier_one_but_keeps_its_model_card(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    exported(runs, tmp_path / "model")
    (tmp_path / "model" / "MODEL_CARD.md").write_text("what it can do")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    exported(runs, tmp_path / "link")
    assert load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert (tmp_path / "model" / "MODEL_CARD.md").read_text() == "what it can do"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]
    assert (tmp_path / "link").is_symlink()


def exported(runs: Path, out: Path) -> None:
    parts = ["--tokenizer", runs / "tokenizer", "--autoencoder", runs / "autoencoder" / "vae", "--pair", runs / "pair"]
    export.main([str(part) for part in (*parts, "--unet", runs / "unet", "--out", out)])


def test_normalised_latents_decode_to_the_same_picture(shards: Path) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build((16, 16, 16, 32)).eval()
    pictures = autoencoder.load_shards(shards)
    x = autoencoder.exact_crops(pictures, torch.arange(8), 128, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        made = vae.decode(before.mean).sample
        autoencoder.normalise(vae, pictures, 8, torch.Generator().manual_seed(0))
        after = vae.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, made, atol=1e-3, rtol=1e-3)
    assert after.mean.std((0, 2, 3)).sub(1).abs().max() < 0.5
    # A posterior is rescaled as a whole: its deviation relative to the data's stays.
    ratio = after.std / before.std * (before.mean.std((0, 2, 3)) / after.mean.std((0, 2, 3)))[:, None, None]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=0.02, rtol=0)
    assert vae.config.scaling_factor == pytest.approx(1, abs=0.2)


def test_training_only_the_decoder_leaves_the_latents_unchanged(
    runs: Path, shards: Path, random_vgg: Path, tmp_path: Path
) -> None:
    start = runs / "autoencoder" / "vae"
    given = ["--data", str(shards), "--perceptual", str(random_vgg), "--batch", "2", "--crop", "64", "--decoder-only"]
    with pytest.raises(InstError, match="give --warm-start FOLDER"):
        autoencoder.main([*given, "--out", str(tmp_path), *SMALL, "2"])
    given += ["--latent-noise", "0.1"]
    autoencoder.main([*given, "--warm-start", str(start), "--out", str(tmp_path), *SMALL, "2"])
    with pytest.raises(UsageError, match="give it with --decoder-only"):
        autoencoder.main(["--data", str(shards), "--latent-noise", "0.1", "--out", str(tmp_path), *SMALL, "1"])
    before, after = (AutoencoderKL.from_pretrained(folder) for folder in (start, tmp_path / "vae"))
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = before.encode(picture).latent_dist.mean
        torch.testing.assert_close(after.encode(picture).latent_dist.mean, latents)
        assert (after.decode(latents).sample - before.decode(latents).sample).abs().max() > 1e-5
    assert after.config.scaling_factor == before.config.scaling_factor
    parts = ["--tokenizer", runs / "tokenizer", "--autoencoder", tmp_path / "vae", "--pair", runs / "pair"]
    export.main([str(part) for part in (*parts, "--unet", runs / "unet", "--out", tmp_path / "tiny")])
    assert str(runs) not in (tmp_path / "tiny" / "vae" / "config.json").read_text(), "says where it was trained"


def test_noise_on_the_latents_is_as_large_as_asked(runs: Path, random_vgg: Path) -> None:
    vae = AutoencoderKL.from_pretrained(runs / "autoencoder" / "vae")
    seen = list[torch.Tensor]()
    vae.post_quant_conv.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    losses = autoencoder.Losses(vae, LPIPS.load(random_vgg), 1.0, scaled=False)
    real = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    amounts = torch.tensor([0.0, 0.0, 0.5, 2.0]).view(-1, 1, 1, 1)
    with torch.no_grad():
        losses(real, noise, amounts)
        posterior = vae.encode(real).latent_dist
    added = seen[0] - posterior.mean
    torch.testing.assert_close(added, (posterior.var + amounts**2).sqrt() * noise)


def test_an_interrupted_stage_resumes_exactly(
    runs: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal after the second of four steps; then the same command again."""
    given = [*unet_arguments(shards, runs), "--out", str(tmp_path), *SMALL, "4"]
    write_log = training.Training._write_log

    def interrupt(self: training.Training, progress: float) -> None:
        write_log(self, progress)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(training.Training, "_write_log", interrupt)
        with pytest.raises(InstError, match="interrupted after step 2; run the same command again to resume"):
            unet.main(given)
    assert not (tmp_path / "unet").exists()
    unet.main(given)
    straight, resumed = (load_file(path / "checkpoint.safetensors") for path in (runs / "unet", tmp_path))
    assert straight.keys() == resumed.keys()
    assert [key for key in straight if not torch.equal(straight[key], resumed[key])] == []
    assert any(key.startswith("optimiser/both/") for key in straight)
    assert any(key.startswith("ema/inversion/") for key in straight)


def test_a_denoiser_with_a_warm_start_begins_with_the_earlier_weights(runs: Path, shards: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 what is written is what it began with."""
    given = [*unet_arguments(shards, runs), "--warm-start", str(runs / "unet"), "--rate", "0", "--out", str(tmp_path)]
    unet.main([*given, *SMALL, "1"])
    for part in ("unet/diffusion_pytorch_model.safetensors", "inversion/model.safetensors"):
        before, after = load_file(runs / "unet" / part), load_file(tmp_path / part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(UsageError, match=r"--vectors 3: the words of .*unet have 2"):
        unet.main([*given, "--vectors", "3", *SMALL, "1"])


@pytest.mark.parametrize("mode", ["concat", "both"])
def test_a_denoiser_learns_to_read_a_reference_and_is_saved_as_before(
    mode: str, runs: Path, shards: Path, tmp_path: Path
) -> None:
    """Of three steps, the first and the third have a reference."""
    given = [*unet_arguments(shards, runs), "--reference", mode, "--out", str(tmp_path)]
    unet.main([*given, "--reference-share", "0.5", *SMALL, "3"])
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [{"v_mse_reference", "v_mse_own"} <= row.keys() for row in rows] == [True, False, True]
    assert {"v_mse", "v_mse_word", "v_mse_plain"} <= rows[0].keys()
    before, after = (load_file(f / "unet/diffusion_pytorch_model.safetensors") for f in (runs / "unet", tmp_path))
    assert before.keys() == after.keys()
    config = "unet/config.json"
    assert json.loads((tmp_path / config).read_text()) == json.loads((runs / "unet" / config).read_text())
    with pytest.raises(InstError, match=rf"was made with reference = {mode}, not none"):
        unet.main([*unet_arguments(shards, runs), "--out", str(tmp_path), *SMALL, "4"])


def test_a_pair_with_a_warm_start_keeps_the_embeddings_of_tokens_known_to_both(
    runs: Path, shards: Path, random_vgg: Path, random_inception: Path, tmp_path: Path
) -> None:
    """At a learning rate of 0 every known token keeps its row, wherever the other tokenizer put it."""
    start = runs / "pair"
    tokenizer.save(tokenizer.learn(["a watercolour of a bay", "watercolour and bay"] * 9, 560, 24), tmp_path / "other")
    teachers = ["--vgg", str(random_vgg), "--inception", str(random_inception), "--tokenizer", str(tmp_path / "other")]
    sizes = ["--batch", "4", "--width", "32", "--text-layers", "1", "--image-layers", "1", "--rate", "0"]
    given = ["--data", str(shards), *teachers, *sizes, "--warm-start", str(start), "--out", str(tmp_path / "pair")]
    with pytest.raises(UsageError, match="its encoders have other sizes; give its --width"):
        pair.main([*given, "--width", "64", *SMALL, "1"])
    pair.main([*given, *SMALL, "1"])

    old, new = (CLIPTokenizer.from_pretrained(f).get_vocab() for f in (start / "tokenizer", tmp_path / "other"))
    assert old.keys() - new.keys()
    assert new.keys() - old.keys()
    before, after = (load_file(f / "text_encoder" / "model.safetensors") for f in (start, tmp_path / "pair"))
    table = "text_model.embeddings.token_embedding.weight"
    for token in old.keys() & new.keys():
        assert torch.equal(before[table][old[token]], after[table][new[token]])
    assert all(torch.equal(before[key], after[key]) for key in before if key != table)
    before, after = (load_file(f / "image_encoder" / "model.safetensors") for f in (start, tmp_path / "pair"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_another_tokenizer_than_the_encoders_learned_with_is_refused(runs: Path, shards: Path, tmp_path: Path) -> None:
    """Of the same size, so that nothing else could tell."""
    old = CLIPTokenizer.from_pretrained(runs / "tokenizer")
    tokenizer.save(tokenizer.learn(["a watercolour of a bay"] * 9, len(old), 24), tmp_path / "other")
    refused = r"other: not the tokenizer that .*pair was trained with; give .*pair/tokenizer"
    given = [*unet_arguments(shards, runs), "--tokenizer", str(tmp_path / "other"), "--out", str(tmp_path / "unet")]
    with pytest.raises(UsageError, match=refused):
        unet.main([*given, *SMALL, "1"])
    parts = ["--autoencoder", runs / "autoencoder" / "vae", "--pair", runs / "pair", "--unet", runs / "unet"]
    more = ["--tokenizer", tmp_path / "other", "--out", tmp_path / "tiny"]
    with pytest.raises(UsageError, match=refused):
        export.main([str(part) for part in (*parts, *more)])
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_pair_holds_the_tokenizer_that_it_was_given(runs: Path) -> None:
    for path in (runs / "tokenizer").iterdir():
        assert (runs / "pair" / "tokenizer" / path.name).read_bytes() == path.read_bytes()


def test_a_stage_writes_the_averaged_weights(runs: Path) -> None:
    checkpoint = load_file(runs / "unet" / "checkpoint.safetensors")
    written = AttentionInversion.from_pretrained(runs / "unet" / "inversion").state_dict()
    for name, tensor in written.items():
        average = checkpoint.get(f"ema/inversion/{name}", checkpoint[f"module/inversion/{name}"])
        torch.testing.assert_close(tensor, average)


def stage(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def test_a_full_disk_keeps_the_old_checkpoint_and_is_reported_without_a_traceback(
    runs: Path, shards: Path, tmp_path: Path
) -> None:
    given = [*unet_arguments(shards, runs), "--out", str(tmp_path), *SMALL]
    with pytest.raises(InstError, match="interrupted"):
        interrupted_at_once(given)
    checkpoint = tmp_path / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    limit = len(before) // 2
    answer = stage(
        RECIPE / "unet.py", *given, "2", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert answer.returncode == 1
    assert "checkpoint.safetensors cannot be written (File too large)" in answer.stderr.splitlines()[-1]
    assert "Traceback" not in answer.stderr
    assert checkpoint.read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def interrupted_at_once(given: list[str]) -> None:
    start = training.TimeBox.start

    def interrupt(self: training.TimeBox) -> None:
        start(self)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.TimeBox, "start", interrupt)
        unet.main([*given, "2"])


def test_two_processes_train_one_model_with_different_random_states(runs: Path, shards: Path, tmp_path: Path) -> None:
    given = [*unet_arguments(shards, runs), "--out", tmp_path, *SMALL, "5"]
    answer = stage("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, RECIPE / "unet.py", *given)
    assert answer.returncode == 0, answer.stderr
    state = load_file(tmp_path / "checkpoint.safetensors")
    assert not torch.equal(state["random/generator/0"], state["random/generator/1"])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()


def fresh(tmp_path: Path, **settings: object) -> training.Training:
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    adam = training.optimiser([module], 0.1, 0.0, (0.9, 0.99))
    return training.Training(
        workers.Workers(0, 1, torch.device("cpu")),
        tmp_path,
        {"module": module},
        {"adam": adam},
        {"module": training.EMA(module, 0.9)},
        torch.Generator().manual_seed(0),
        training.TimeBox(None, 3),
        settings,
    )


def run(job: training.Training, advance: Callable[[float], dict[str, torch.Tensor]]) -> None:
    job.run(advance, sheet=lambda path: path.touch(), log_every=1, save_every_seconds=1e9)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    job = fresh(tmp_path)
    job.save()
    before = job.path.read_bytes()
    with pytest.raises(
        InstError,
        match=r"loss is not finite at step 1; .* holds the last good state: .* lower --rate",
    ):
        run(job, lambda progress: {"loss": torch.tensor(float("nan"))})
    assert job.path.read_bytes() == before


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """The loss may be looked at too late: the log has a line every so many steps only."""
    job = fresh(tmp_path)
    job.save()
    before = job.path.read_bytes()

    def spoil(progress: float) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            next(job.modules["module"].parameters())[0] = float("inf")
        return {}

    with pytest.raises(InstError, match="a weight is not finite at step 3"):
        run(job, spoil)
    assert job.path.read_bytes() == before


def test_resumed_optimiser_moments_keep_the_memory_layout_of_their_weights(tmp_path: Path) -> None:
    """The fused optimiser of GPUs insists on it."""

    def job() -> training.Training:
        module = nn.Conv2d(4, 8, 3)
        training.channels_last(module)
        adam = training.optimiser([module], 0.1, 0.0, (0.9, 0.99))
        module(torch.randn(1, 4, 5, 5)).sum().backward()
        adam.step()
        alone = workers.Workers(0, 1, torch.device("cpu"))
        box = training.TimeBox(None, 3)
        return training.Training(alone, tmp_path, {"m": module}, {"adam": adam}, {}, torch.Generator(), box, {})

    job().save()
    again = job()
    assert again.resume()
    weight = next(again.modules["m"].parameters())
    assert again.optimisers["adam"].state[weight]["exp_avg"].stride() == weight.stride()


def test_a_log_that_cannot_be_written_is_reported_without_a_traceback(runs: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    answer = stage(RECIPE / "unet.py", *unet_arguments(shards, runs), "--out", tmp_path, *SMALL, "2")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1].startswith("error: ")
    assert "No space left on device" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    files.write_folder(folder, lambda to: (to / "old").touch())

    def fail(to: Path) -> None:
        (to / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(InstError, match=r"vae: cannot be written .*No space left.*; free disk space"):
        files.write_folder(folder, fail)
    assert [path.name for path in tmp_path.rglob("*")] == ["vae", "old"]
    files.write_folder(folder, lambda to: (to / "new").touch())
    assert [path.name for path in tmp_path.rglob("*")] == ["vae", "new"]


def test_no_held_out_caption_reaches_the_tokenizer(
    members: Callable[[int], list[tuple[str, bytes]]],
    write_tar: Callable[[Path, Sequence[tuple[str, bytes]]], Path],
    tmp_path: Path,
) -> None:
    """Every picture has a word of its own: learned whole where the picture is trained on, and unknown where not."""
    words = [letter * 3 for letter in "abcdefghijklmnop"]
    files_of_shard = members(len(words))
    for i, word in enumerate(words):
        files_of_shard[2 * i + 1] = (files_of_shard[2 * i + 1][0], json.dumps({"captions": [word]}).encode())
    write_tar(tmp_path / "data" / "a.tar", files_of_shard)
    given = ["--data", str(tmp_path / "data"), "--out", str(tmp_path), "--size", "4000", "--length", "24"]
    tokenizer.main(given)
    known = set(json.loads((tmp_path / "tokenizer" / "vocab.json").read_text()))
    pictures = autoencoder.load_shards(tmp_path / "data")
    assert {captions[0] + "</w>" for captions in pictures.train().captions} <= known
    assert not {captions[0] + "</w>" for captions in pictures.held_out().captions} & known


def test_a_checkpoint_of_other_settings_and_a_broken_checkpoint_are_refused(tmp_path: Path) -> None:
    fresh(tmp_path, widths=[32, 64]).save()
    with pytest.raises(InstError, match=r"was made with widths = \[32, 64\], not \[16\]"):
        fresh(tmp_path, widths=[16]).resume()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InstError, match="not a complete checkpoint; delete it to start again"):
        fresh(tmp_path).resume()


def test_the_average_of_the_weights_follows_its_formula(tmp_path: Path) -> None:
    job = fresh(tmp_path)
    module = job.modules["module"]
    expected = module.weight.detach().clone()  # type: ignore[operator]
    for step in range(1, 4):
        with torch.no_grad():
            module.weight.add_(1.0)  # type: ignore[operator]
        job.emas["module"].update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()  # type: ignore[operator]
    torch.testing.assert_close(job.emas["module"].shadow[0], expected)


def test_the_learning_rate_rises_at_first_and_then_only_falls() -> None:
    rates = [training.learning_rate(step / 1000, step, 2.0, warm=100) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_a_time_box_counts_only_the_time_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    box = training.TimeBox(minutes=1, steps=None)
    box.start()
    now = 115.0
    box.tick()
    assert box.progress(0) == pytest.approx(0.25)
    now = 500.0  # the machine was off
    box.start()
    now = 515.0
    box.tick()
    assert box.progress(0) == pytest.approx(0.5)
    with pytest.raises(InstError, match="--minutes or --steps"):
        training.TimeBox(None, None)


def test_stratified_timesteps_cover_the_whole_range() -> None:
    t = unet.timesteps(100, 1000, torch.Generator().manual_seed(0)).sort().values
    assert (t // 10 == torch.arange(100)).sum() >= 99  # one in each hundredth, up to a shift by the offset
    assert (t >= 0).all()
    assert (t < 1000).all()


def test_pairs_with_equal_sentences_are_positives_in_the_contrastive_loss() -> None:
    pictures = torch.eye(4)
    texts = torch.eye(4)[[1, 0, 2, 3]]  # the first two pictures' texts are exchanged
    exchanged = pair.contrast(pictures, texts, torch.tensor(30.0), torch.tensor([7, 7, 1, 2]), world=1)
    different = pair.contrast(pictures, texts, torch.tensor(30.0), torch.tensor([7, 8, 1, 2]), world=1)
    assert exchanged < different / 1.9
    plain = nn.functional.cross_entropy(30 * pictures @ texts.T, torch.arange(4))  # CLIP's loss, by hand
    torch.testing.assert_close(different, plain)


def test_recall_counts_any_picture_of_the_same_sentence_as_found() -> None:
    pictures, texts = torch.eye(6), torch.eye(6).roll(1, 0)
    assert pair.recall(pictures, texts, torch.arange(6), at=1) == 0
    assert pair.recall(pictures, texts, torch.zeros(6), at=1) == 1
    assert pair.recall(pictures, pictures, torch.arange(6), at=1) == 1
