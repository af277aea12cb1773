"""`--tokens`: merging as its paper says, in the graph, in the file, and with what a file can learn from."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from cdl_deploy.bench import rounds
from cdl_deploy.cli import main
from cdl_deploy.closed_form.statistics_file import read_statistics
from cdl_deploy.errors import OptionError, ParityError
from cdl_deploy.export import ExportOptions
from cdl_deploy.export.attention import FoldedAttention
from cdl_deploy.export.fit_target import fit_target
from cdl_deploy.export.graph import ExportGraph
from cdl_deploy.export.merged_export import Compared, merge_for_export
from cdl_deploy.export.merged_model import MergedModel, MergingViT
from cdl_deploy.export.merging import Merging, plan_merging
from cdl_deploy.learn.learner import Learner
from cdl_deploy.runtime.bundle import read_bundle
from cdl_deploy.runtime.classifier import Classifier
from cdl_deploy.targets import find_target
from cdl_deploy.training.backbones.plain import PlainViT
from cdl_deploy.training.backbones.rotary import RotaryViT
from cdl_deploy.training.checkpoint import load_run
from cdl_deploy.training.models.learner import learner_logits
from tests.export.conftest import exported
from tests.export.test_evaluate_run import rewrite
from tests.training.conftest import make_backbone, make_vit
from tests.training.test_learner import pixels
from tests.training.test_methods import make


def merged_slowly(tokens, sizes, keys, first, last, gone):
    """Section 3 of the paper for one image: rows `first` to `last` merge; of equal ones the earlier is preferred."""
    a, b = list(range(first, last, 2)), list(range(first + 1, last, 2))
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    edges = []
    for i in a:
        scores = [unit[i] @ unit[j] for j in b]
        best = int(np.argmax(scores))
        edges.append((-scores[best], i, b[best]))
    tokens, sizes = tokens * sizes[:, None], sizes.copy()
    for _, i, j in sorted(edges)[:gone]:
        tokens[j] += tokens[i]
        sizes[j] += sizes[i]
    merged = [i for _, i, _ in sorted(edges)[:gone]]
    order = [*range(first), *(i for i in a if i not in merged), *b, *range(last, len(tokens))]
    return (tokens / sizes[:, None])[order], sizes[order]


@pytest.mark.parametrize(("patches", "steps"), [(9, (2,)), (9, (5, 2)), (8, (4, 2, 1)), (2, (1,))])
@torch.no_grad()
def test_tokens_merge_as_the_paper_says(patches, steps):
    attention = FoldedAttention(make_backbone(), 0)
    bias = attention.key_shift.mean(dim=1)[0, 0].numpy()
    assert abs(bias).max() > 0.01
    generator = torch.Generator().manual_seed(patches)
    tokens, sizes, count = torch.randn(3, 2 + patches + 1, 24, generator=generator), None, patches
    expected = [(rows.numpy(), np.ones(len(rows))) for rows in tokens]
    for gone in steps:
        keys = torch.randn(3, 3, 2 + count + 1, 8, generator=generator)
        merging = Merging(attention, 2, count, gone)
        tokens, sizes = merging(keys, tokens, sizes)
        metric = keys.mean(dim=1).numpy() + bias
        expected = [merged_slowly(*own, key, 2, 2 + count, gone) for own, key in zip(expected, metric, strict=True)]
        count -= gone
    for image, (rows, counts) in enumerate(expected):
        own, found = (tokens[image].numpy(), sizes[image].numpy())
        order, theirs = (np.lexsort(it.T) for it in (np.round(own, 4), np.round(rows, 4)))
        np.testing.assert_allclose(own[order], rows[theirs], atol=1e-5)
        np.testing.assert_array_equal(found[order], counts[theirs])
        assert found.sum() == 2 + patches + 1


def test_equal_scores_are_settled_alike_in_pytorch_and_onnxruntime():
    """Keys of few different values: most scores are equal. The earlier one is taken, in the file by TopK and ArgMax."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.eye(8)[torch.randint(0, 3, (6, 25), generator=generator)]
    tokens = torch.randn(6, 25, 24, generator=generator)
    merged = MergingViT.of(make_backbone(img_size=40), {0: 7})
    merged.margins, merged.groups = [], torch.arange(25).expand(6, -1)
    merged.merge(keys, 7)
    assert (merged.margins[0] == 0).all()
    for image in range(6):
        groups = merged.groups[image]
        own = torch.stack([tokens[image][groups == group].mean(dim=0) for group in range(18)])
        expected = merged_slowly(tokens[image].numpy(), np.ones(25), keys[image].numpy(), 0, 25, 7)[0]
        np.testing.assert_allclose(own.numpy(), expected, atol=1e-6)
    scores = (keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)).numpy()
    nodes = [
        helper.make_node("ArgMax", ["scores"], ["nearest"], axis=2, keepdims=0),
        helper.make_node("TopK", ["best", "count"], ["values", "order"], axis=1),
    ]
    floats, integers = (partial(helper.make_tensor_value_info, elem_type=kind, shape=None) for kind in (1, 7))
    values = [[floats("scores"), floats("best")], [integers("nearest"), integers("order")]]
    graph = helper.make_graph(nodes, "ties", *values, [numpy_helper.from_array(np.array([13]), "count")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    best = scores.max(axis=2)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"scores": scores, "best": best})
    np.testing.assert_array_equal(found[0], scores.argmax(axis=2))
    np.testing.assert_array_equal(found[1], np.argsort(-best, axis=1, kind="stable"))


@pytest.mark.parametrize("changes", [
    {}, {"qk_norm": True, "init_values": 0.3}, {"reg_tokens": 2, "qkv_bias": False},
    {"class_token": False, "global_pool": "avg", "fc_norm": True},
], ids=str)  # fmt: skip
@torch.no_grad()
def test_a_pass_with_merging_is_the_papers(changes):
    """Attention that adds log m to a score, and means weighted by m; there every patch keeps a row of its own."""
    vit = make_vit(img_size=24, depth=4, **changes)
    backbone = PlainViT(vit, (0.5,) * 3, (0.5,) * 3)
    steps, first, features = plan_merging(backbone, 0.25), backbone.layout.first_patch, ("class", "patches")
    assert steps == {0: 5, 1: 2}
    tokens = backbone.embed_normalised(torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1)))
    found = backbone.pool(MergingViT.of(backbone, steps).run_blocks(tokens, 0, 4), features)
    for image in range(3):
        rows, sizes = tokens[image], np.ones(tokens.shape[1])
        for index, block in enumerate(vit.blocks):
            attention = block.attn
            q, k, v = attention.qkv(block.norm1(rows)).unflatten(1, (3, 3, 8)).permute(1, 2, 0, 3)
            q, k = attention.q_norm(q), attention.k_norm(k)
            scores = q @ k.transpose(1, 2) / 8**0.5 + torch.tensor(sizes).log().float()
            rows = rows + block.ls1(attention.proj((scores.softmax(dim=2) @ v).transpose(0, 1).flatten(1)))
            if index in steps:
                last = first + 9 - sum(gone for at, gone in steps.items() if at < index)
                merged, sizes = merged_slowly(
                    rows.double().numpy(), sizes, k.mean(dim=0).numpy(), first, last, steps[index]
                )
                rows = torch.from_numpy(merged).float()
            rows = rows + block.ls2(block.mlp(block.norm2(rows)))
        normed, weights = vit.norm(rows), torch.tensor(sizes[first:]).float()
        mean = vit.fc_norm((weights[:, None] * normed[first:]).sum(dim=0) / 9)
        expected = [normed[0] if vit.cls_token is not None else mean, mean]
        torch.testing.assert_close(found[image], torch.stack(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("method", "query", "role", "share"), [
    ("coda", "full", "student", 0.5), ("coda", "full", "teacher", 0.8), ("coda", "block:1", "student", 0.3),
    ("dualprompt", "block:1", "teacher", 0.5), ("l2p", "full", "student", 0.3), ("apt", "full", "student", 0.8),
])  # fmt: skip
@torch.no_grad()
def test_the_graph_is_the_trained_model_with_merged_tokens(method, query, role, share):
    pair, images = make(method, query=query), pixels(5)
    learner = pair.learners[role]
    normalised = (images / 255 - learner.backbone.mean) / learner.backbone.std
    merged = MergedModel(pair, learner, share)
    assert merged.clear(images).all()
    expected = learner_logits(merged.pair.encoder, merged.learner, images)
    graph = ExportGraph(pair, learner, tokens=share)
    torch.testing.assert_close(graph(normalised)[0], expected, atol=1e-5, rtol=0)
    plain = learner_logits(pair.encoder, learner, images)
    assert float((plain - expected).abs().max()) > 1e-3
    torch.testing.assert_close(ExportGraph(pair, learner)(normalised)[0], plain, atol=1e-4, rtol=0)


@torch.no_grad()
def test_an_early_query_is_that_of_all_tokens():
    pair, full = make("l2p", query="block:2"), make("l2p")
    graph = ExportGraph(pair, pair.student, tokens=0.5)
    assert list(graph.merging) == ["2"]
    assert not graph.query_merging
    assert list(ExportGraph(pair, pair.teacher, tokens=0.3).merging) == ["2", "3"]
    assert list(ExportGraph(full, full.student, tokens=0.5).query_merging) == ["0"]


@pytest.fixture(scope="module")
def solved(trained, tmp_path_factory):
    """A closed-form student of which three in four tokens are left."""
    return exported(trained(), tmp_path_factory.mktemp("merged") / "out", teacher=False, tokens=0.8)[0]


def test_a_closed_form_head_is_solved_of_merged_tokens(solved, bundles, photos):
    """Oracle of the sums: means of the file's own features of the training images."""
    bundle = read_bundle(solved.bundle.path)
    tokens = bundle.patch_tokens
    assert (tokens.left, tokens.patches, tokens.head, tokens.images) == (3, 4, "solved", 16)
    assert (bundle.parity.images, bundle.parity.top1_agreement) == (16 - solved.close, 1)
    lost = tokens.accuracy_before - tokens.accuracy_after
    assert rounds._accuracy(bundle, {"metadata": {}}) == bundle.accuracy.final_average_accuracy - lost
    assert bundle.features.sha256 != read_bundle(bundles() / "student.onnx").features.sha256
    stored = read_statistics(bundle.path.parent / bundle.statistics.file, bundle.features.sha256)
    classifier = Classifier(bundle.path)
    for name, mean in zip(stored.history.total.classes, stored.history.total.means, strict=True):
        files = sorted((photos / "train" / name).iterdir())
        rows = np.concatenate([classifier.features(classifier.prepare(path)[None]) for path in files])
        np.testing.assert_allclose(rows.astype(float).mean(axis=0), mean, atol=1e-4)


def test_such_a_file_learns_and_is_itself_in_any_batch(solved, photos, tmp_path, capsys, monkeypatch):
    shutil.copytree(solved.bundle.path.parent, tmp_path / "device")
    path = tmp_path / "device" / "student.onnx"
    before = path.read_bytes()
    files = sorted((photos / "test").rglob("*.png"))
    learner = Learner(path).add("new", files[:3])
    learner.save()
    assert Classifier(path).classes[-1] == "new"
    assert read_bundle(path).patch_tokens == solved.bundle.patch_tokens
    Learner(path).undo().save()
    assert path.read_bytes() == before
    session, classifier = onnxruntime.InferenceSession(path), Classifier(path)
    feed = np.stack([classifier.prepare(file) for file in files])
    (whole,) = session.run(["features"], {"image": feed})
    alone = [session.run(["features"], {"image": image[None]})[0] for image in feed]
    np.testing.assert_array_equal(whole, np.concatenate(alone))
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    shown = capsys.readouterr().out
    assert "3 of 4 are left, the others merge (--tokens 0.8)" in shown
    assert "with all patch tokens (measured by the run)" in shown


def test_only_a_target_with_argmax_takes_it(solved):
    model = onnx.load(solved.bundle.path)
    with pytest.raises(OptionError, match="--target ncnn cannot hold this model, which merges patch tokens by ArgMax"):
        fit_target(model, find_target("ncnn"))


def test_without_its_training_images_it_is_a_classifier(trained, tmp_path, capsys, monkeypatch):
    """Sums of all tokens are not those of merged ones: they stay out, and so do features and distance."""
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    record = json.loads((run / "run.json").read_text())
    for plan in record["plans"]:
        plan["data"] = str(tmp_path / "gone")
    rewrite(run, record)
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run), "--out", str(tmp_path / "out"), "--tokens", "0.5", "--no-teacher"])
    assert stopped.value.code in (0, None), capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "2 of 4 are left, the others merge (--tokens 0.5)" in shown
    assert "the head was trained with all of them" in shown
    assert "it cannot learn, nor say unknown" in shown
    bundle = read_bundle(tmp_path / "out/student.onnx")
    assert bundle.features is bundle.statistics is bundle.unknown_threshold is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["student.json", "student.onnx"]
    kinds = [node.op_type for node in onnx.load(bundle.path).graph.node]
    assert kinds.count("TopK") == 1, "of the best classes: half of the tokens go without"


def test_images_that_no_file_can_settle_are_told_apart(trained):
    """All patches are alike, and so are all merges: nothing is left to compare."""
    record, pair = load_run(trained())
    with torch.no_grad():
        pair.student.backbone.vit.pos_embed.zero_()
    images = torch.full((3, 3, *pair.student.backbone.image_size), 77, dtype=torch.uint8)
    with pytest.raises(ParityError, match=r"--tokens 0\.5: none of the 3 held-out images can be compared"):
        merge_for_export(
            trained(), record, Compared(pair, pair.student, images), torch.zeros(3), 0.5, None, lambda text: None
        )


@pytest.mark.parametrize(("share", "message"), [
    ("0", "--tokens is 0, expected the share of patch tokens that are left: above 0, at most 1"),
    ("1.1", "--tokens is 1.1, expected the share"), ("nan", "--tokens is nan, expected the share"),
    ("-1", "--tokens is -1, expected the share"),
    ("0.2", "--tokens 0.2 leaves none of the 4 patch tokens: give at least 0.25"),
    ("0.25", "--tokens 0.25 is to leave 1 of 4 patch tokens, but half of them can go in a block, and 1 of the 2 blocks "
     "can merge (prompts begin in block 0, and the last has nothing to save): give at least 0.5"),
    ("half", "Invalid value for '--tokens'"),
])  # fmt: skip
def test_a_share_that_cannot_be(share, message, trained, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(trained()), "--out", str(tmp_path / "out"), "--tokens", share])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_family_of_another_package_keeps_what_it_overrides():
    class Doubled(PlainViT):
        def final_norm(self, tokens):
            return 2 * super().final_norm(tokens)

    backbone = Doubled(make_vit(), (0.5,) * 3, (0.5,) * 3)
    merging = MergingViT.of(backbone, plan_merging(backbone, 0.5))
    assert isinstance(merging, Doubled)
    tokens = torch.randn(2, 5, 24)
    torch.testing.assert_close(merging.final_norm(tokens), backbone.final_norm(tokens))
    assert type(backbone) is Doubled


def test_backbones_that_cannot_merge():
    pooled = make_vit(class_token=False, global_pool="map")
    with pytest.raises(OptionError, match=r"cannot merge \(it pools its tokens by attention\): leave --tokens out"):
        plan_merging(PlainViT(pooled, (0.5,) * 3, (0.5,) * 3), 0.5)
    rotates = type("Rotates", (), {"rotates": True})()
    assert "by the place of a patch" in RotaryViT.cannot_merge(rotates)


def test_all_tokens_are_what_is_exported_without_the_option():
    assert ExportOptions(tokens=1.0) == ExportOptions()
    assert plan_merging(make_backbone(), 1.0) == {}
