"""`--features …+patches@K`: what a head reads of an earlier block, in training, in the file, and on the device.

Oracles: hooks on timm's own blocks; the run's learner.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch

from cdl_deploy.cli import main
from cdl_deploy.errors import OptionError
from cdl_deploy.export import ExportOptions, export_run
from cdl_deploy.learn.learner import Learner
from cdl_deploy.run.config import MethodConfig
from cdl_deploy.run.record import read_record
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.classifier import Classifier
from cdl_deploy.training.backbones.protocol import BlockPrompt
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.features import at_the_end, early_blocks, in_order, side_by_side, with_early
from cdl_deploy.training.models.learner import learner_output, merge
from cdl_deploy.training.models.teacher_student import build_teacher_student
from cdl_deploy.training.revisions import new_heads
from tests.export.conftest import NAMES, exported
from tests.training.conftest import make_backbone, pixels_of
from tests.training.naive import naive_block, naive_embed, tokens_after
from tests.training.test_learner import make_pair, normalised, pixels

EARLY = "class+patches+patches@0"


def test_names_and_places():
    names = ("kd", "patches@10", "patches@2", "patches")
    assert in_order(names) == ("class", "patches", "patches@2", "patches@10", "kd")
    assert (early_blocks(names), at_the_end(names)) == ((2, 10), ("class", "patches", "kd"))
    pooled = torch.tensor([[[1.0], [2.0], [5.0]]])
    found = with_early(pooled, at_the_end(names), {10: torch.tensor([[4.0]]), 2: torch.tensor([[3.0]])})
    assert found.flatten().tolist() == [1, 2, 3, 4, 5]
    assert side_by_side(found, ("patches@10", "class"), in_order(names)).tolist() == [[4, 1]]


def patches_after(vit, images, block):
    """By timm alone: the mean patch after a block, through the final norm."""
    return tokens_after(vit, images, block)[:, vit.num_prefix_tokens :].mean(dim=1)


@torch.no_grad()
def test_a_frozen_student_reads_what_timm_computes():
    backbones = {"student": make_backbone(depth=5), "teacher": make_backbone(width=32, depth=6, heads=4, seed=1)}
    config = MethodConfig(
        "none", "none", head="slda", features="class+patches@1+patches@3", teacher_features="patches@4+class"
    )
    pair = build_teacher_student(backbones, config, seed=0)
    pair.begin_task(2, seed=0)
    images = pixels(3)
    for role, blocks in (("student", (1, 3)), ("teacher", (4,))):
        learner = pair.learners[role]
        vit, seen = learner.backbone.vit, torch.stack([normalised(image) for image in images])
        found = learner.closed_form_features(learner_output(pair.encoder, learner, images))
        wanted = [vit.forward_features(seen)[:, 0], *(patches_after(vit, seen, block) for block in blocks)]
        torch.testing.assert_close(found, torch.cat(wanted, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("query", ["full", "block:2"])
@torch.no_grad()
def test_prompts_and_kd_tokens_are_no_patches(query):
    """The mean after block 1 is of the patches alone, wherever the pass began and whatever was appended."""
    pair = make_pair(head="slda", features="class+kd+patches@1", teacher_features="class", method="l2p", query=query)
    student, images = pair.student, pixels(2)
    found = student.closed_form_features(learner_output(pair.encoder, student, images))
    width, vit = student.backbone.width, student.backbone.vit
    queries = pair.encoder(images).query
    for number, image in enumerate(images):
        tokens, prompts = naive_embed(vit, normalised(image)), {}
        if query == "full":  # otherwise the first two blocks give the query, and know neither
            selected = student.method(queries[number : number + 1], "test").prompts
            prompts = merge(selected, student.distillation.block_prompts())
            tokens = torch.cat([tokens, student.distillation.token])
            assert prompts[0].prefix is not None
            assert prompts[1].suffix is not None
        for index in range(2):
            given = prompts.get(index, BlockPrompt())
            rows = {"before": given.prefix, "after": given.suffix}
            tokens = naive_block(
                vit, index, tokens, **{k: [v[0][0], v[1][0]] for k, v in rows.items() if v is not None}
            )
        wanted = vit.norm(tokens)[1:5].mean(dim=0)
        torch.testing.assert_close(found[number, width : 2 * width], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("options", "message"), [
    ({"features": "patches@5"}, r"--features patches@5: the student has 6 blocks, so expected patches@0 to patches@4"),
    ({"features": "class+patches@4"}, ""),
    ({"features": "patches@0", "query": "block:2", "method": "l2p"}, "first 2 of which give the query, so .*patches@1"),
    ({"features": "class", "teacher_features": "patches@9"}, "--teacher-features patches@9: the teacher has 7 blocks"),
    ({"features": "class", "teacher_features": "class+kd"}, "a teacher has no KD token: leave kd out"),
    ({"features": "patches@01"}, "--features is 'patches@01', expected some of class, patches, kd and patches@BLOCK"),
    ({"features": "patches@1+patches@1"}, "each once, joined by"),
])  # fmt: skip
def test_blocks_that_are_not_there_are_named(options, message):
    if not message:
        assert make_pair(head="slda", **options).student.closed_form.features == ("class", "patches@4")
        return
    with pytest.raises(OptionError, match=message):
        make_pair(head="slda", **options)


def test_the_only_block_has_none_before_it():
    config = MethodConfig("none", "none", head="slda", features="class+patches@0")
    said = "the student has 1 block, so there is none before: take patches for those of the last$"
    with pytest.raises(OptionError, match=said):
        build_teacher_student({"student": make_backbone(depth=1)}, config, seed=0)


def test_without_a_teacher_nothing_can_be_said_of_its_features():
    config = MethodConfig("none", "none", head="slda", teacher_features="class")
    with pytest.raises(OptionError, match="--teacher-features class: there is no teacher: leave it out"):
        build_teacher_student({"student": make_backbone()}, config, seed=0)


def test_a_teacher_of_fewer_blocks_says_where_to_name_its_own():
    backbones = {"student": make_backbone(depth=6), "teacher": make_backbone(width=32, depth=3, heads=4)}
    config = MethodConfig("none", "none", head="slda", features="class+patches@4")
    with pytest.raises(OptionError, match=r"the teacher has 3 blocks.*; --teacher-features can differ"):
        build_teacher_student(backbones, config, seed=0)


def test_the_file_gives_them_and_learns_with_them(trained, photos, tmp_path):
    run = trained(features=EARLY)
    record, pair = load_run(run)
    assert [fitted.features for fitted in record.tasks[-1].heads.values()] == [EARLY]
    (item,) = exported(run, tmp_path / "out", teacher=False)
    bundle = read_bundle(item.bundle.path)
    width = pair.student.backbone.width
    assert (bundle.features.parts, bundle.features.dimension) == (EARLY, 3 * width)
    assert bundle.parity.top1_agreement == 1
    classifier = Classifier(bundle.path)
    files = sorted((photos / "test").rglob("*.png"))
    seen = np.stack([classifier.prepare(path) for path in files])
    (features,) = onnxruntime.InferenceSession(bundle.path).run(["features"], {"image": seen})
    images = pixels_of(record, files)
    backbone = pair.student.backbone
    with torch.no_grad():
        wanted = patches_after(backbone.vit, (images / 255 - backbone.mean) / backbone.std, 0)
    np.testing.assert_allclose(features[:, 2 * width :], wanted, atol=1e-4)
    learner = Learner(bundle.path).add("new", [path for path in files if path.parent.name == NAMES[0]])
    learner.save()
    assert Classifier(bundle.path).classes == (*NAMES, "new")


def test_prompted_by_command_from_a_head_of_an_earlier_block(trained, tmp_path, capsys):
    """`cdl head` gives a finished run such a head, and the file is of it: KD token, prompts in the graph."""
    run = trained(method="l2p", distill="kdp", adapt="first")
    new_heads(run, tmp_path / "run", {"head": "ridge", "features": "class+kd+patches@0", "teacher_features": "class"})
    fitted = read_record(tmp_path / "run").tasks[-1].heads
    assert {role: head.features for role, head in fitted.items()} == {
        "student": "class+patches@0+kd",
        "teacher": "class",
    }
    items = exported(tmp_path / "run", tmp_path / "out")
    assert [item.bundle.parity.top1_agreement for item in items] == [1, 1]
    said = r"--tokens: the student's head reads patches@0, and merged ones .*cdl head RUN --head ridge --features class"
    with pytest.raises(OptionError, match=said):
        export_run(tmp_path / "run", tmp_path / "merged", ExportOptions(tokens=0.5))
    assert not (tmp_path / "merged").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["head", str(run), "--head", "slda", "--features", "patches@1", "--out", str(tmp_path / "none")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "has 2 blocks, so expected patches@0" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_runs_of_before_have_no_such_option(trained, tmp_path):
    """Records of earlier versions lack it; a finished run is still read, and exported as it was."""
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    record = json.loads((run / "run.json").read_text())
    del record["config"]["method"]["teacher_features"]
    (run / "run.json").write_text(json.dumps(record))
    assert read_record(run).config.method.teacher_features is None
