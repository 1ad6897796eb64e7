"""benchmarks/tpu: HLO and predictions by hand; two real compiles if libtpu is there."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from places import ROOT
from refusals import refused

from benchmarks.tpu import cost, hlo, traffic

HLO = """\
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%fused (p0: bf16[2,8,8,4], p1: bf16[3,3,4,16]) -> bf16[2,8,8,16] {
  %p0 = bf16[2,8,8,4]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[3,3,4,16]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[2,8,8,16]{3,2,1,0:T(8,128)(2,1)} convolution(%p0, %p1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%body (s: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(0)
  %x = f32[16]{0:T(128)} get-tuple-element(%s), index=1
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %all-gather.1 = f32[128]{0:T(128)} all-gather(%x), channel_id=7, dimensions={0}
  %negate.1 = f32[16]{0:T(128)S(1)} negate(%x)
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[16]{0:T(128)}) tuple(%i, %negate.1)
}

%condition (s.1: (s32[], f32[16])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %turns = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %turns), direction=LT
}

ENTRY %main (image: bf16[2,8,8,4], kernel: bf16[3,3,4,16]) -> bf16[2,8,8,16] {
  %image = bf16[2,8,8,4]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %kernel = bf16[3,3,4,16]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %start = (s32[]{:T(128)}, f32[16]{0:T(128)}) parameter(2)
  %loop = (s32[]{:T(128)}, f32[16]{0:T(128)}) while(%start), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  %norm = (f32[8]{0:T(128)S(1)}, /*index=1*/f32[]{:T(128)}) all-reduce(%g.0, %g.1), channel_id=2, to_apply=%sum
  %started = f32[100]{0:T(128)} all-reduce-start(%grad), channel_id=3, to_apply=%sum
  %done = f32[100]{0:T(128)} all-reduce-done(%started)
  %gathering = (bf16[4]{0}, bf16[32]{0}) all-gather-start(%part), dimensions={0}
  %part = bf16[4]{0} bitcast(%image)
  %gathered = bf16[32]{0} all-gather-done(%gathering)
  %scattered = f32[10]{0} reduce-scatter(%wide), dimensions={0}, to_apply=%sum
  %wide = f32[80]{0} bitcast(%image)
  ROOT %fusion.1 = bf16[2,8,8,16]{3,2,1,0:T(8,128)(2,1)} fusion(%image, %kernel), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/conv"}
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("text", "plain", "padded", "in_hbm"),
    [
        # 32 channels in 128 lanes
        ("bf16[8,256,256,32]{3,2,1,0:T(8,128)(2,1)}", 2**25, 2**27, True),
        # 8 images in 128 lanes
        ("bf16[8,256,256,32]{0,3,2,1:T(8,128)(2,1)}", 2**25, 2**29, True),
        # 256 columns in 128 lanes
        ("bf16[8,256,256,32]{2,3,1,0:T(8,128)(2,1)}", 2**25, 2**25, True),
        ("f32[5,200]{1,0:T(8,128)S(1)}", 4000, 8 * 256 * 4, False),
        ("f32[]{:T(128)}", 4, 512, True),
        ("pred[3,5]", 15, 15, True),
    ],
)
def test_an_array_is_padded_as_its_layout_says(text, plain, padded, in_hbm):
    module = hlo.parse(
        f"ENTRY %main (p: f32[]) -> f32[] {{\n  ROOT %a = {text} negate(%b)\n}}"
    )
    (array,) = module.arrays["a"]
    assert (array.bytes(), array.padded_bytes(), array.in_hbm()) == (
        plain,
        padded,
        in_hbm,
    )


def test_every_collective_counts_once_a_turn_of_its_loop():
    assert sorted(hlo.collectives(hlo.parse(HLO))) == [
        # the start's result holds its operand too
        ("all-gather", 2 * 32, 1),
        ("all-gather", 4 * 128, 5),
        ("all-reduce", 4 * 8 + 4, 1),
        # start and done
        ("all-reduce", 4 * 100, 1),
        # what goes in
        ("reduce-scatter", 4 * 80, 1),
    ]


def test_a_fusion_moves_what_it_reads_and_writes_and_multiplies_what_is_inside():
    weights = {w.op.name: w for w in hlo.weights(hlo.parse(HLO))}
    conv, negate = weights["fusion.1"], weights["negate.1"]
    # 8 columns fill the tile's 8 rows, and any number of channels its 128 lanes; 4
    # input channels take 8 rows.
    image, kernel, result = 2 * 8 * 8 * 128 * 2, 9 * 8 * 128 * 2, 2 * 8 * 8 * 128 * 2
    assert (conv.bytes, conv.hbm_bytes, conv.times) == (
        image + kernel + result,
    ) * 2 + (1,)
    assert conv.flop == 2 * (2 * 8 * 8 * 16) * (3 * 3 * 4)
    # its result stays on the chip
    assert (negate.bytes, negate.hbm_bytes, negate.times) == (2 * 512, 512, 5)
    assert conv.op.scope() == "jit(step)/conv"
    assert not {"convolution.1", "loop", "tuple.1", "done", "turns"} & set(weights)


def test_the_profile_shows_what_padding_costs():
    lines = traffic.profile(hlo.parse(HLO), 1).splitlines()
    conv_padded, conv_plain = (
        2 * 2 * 8 * 8 * 256 + 9 * 8 * 256,
        2 * (2 * 8 * 8 * 20 + 9 * 4 * 16),
    )
    assert f"{conv_padded / 1e9:.3f} GB" in lines[lines.index("by operation:") + 1]
    assert "1 x fusion.1: " in lines[lines.index("by operation:") + 1]
    # not the largest
    assert (
        "bf16[3,3,4,16]{3,2,1,0:T(8,128)(2,1)}"
        not in lines[lines.index("by array:") + 1]
    )
    others = (
        sum(w.hbm_bytes * w.times for w in hlo.weights(hlo.parse(HLO))) - conv_padded
    )
    assert conv_plain < float(lines[0].split()[-4]) * 1e9 <= conv_plain + others


def test_a_step_is_the_slower_of_arithmetic_and_memory_then_the_ring():
    chip = cost.Chip(peak=100.0, hbm_bytes=1.0, hbm=10.0, link=5.0)
    ring = cost.collective_seconds(
        [("all-reduce", 20, 1), ("all-gather", 10, 3)], chips=8, chip=chip
    )
    assert ring == pytest.approx(7 / 8 * (2 * 20 + 3 * 10) / 5)
    assert (
        cost.step_seconds(flop=300.0, moved=20.0, collectives=ring, chip=chip)
        == 3.0 + ring
    )
    assert (
        cost.step_seconds(flop=300.0, moved=40.0, collectives=ring, chip=chip)
        == 4.0 + ring
    )


def prediction(chips, per_chip, seconds, program="train"):
    return {
        "topology": f"v5e:{chips}",
        "chip": "v5e",
        "variant": "v",
        "flop": 1e12,
        "bytes": 2e9,
        "hbm_bytes": 1e9,
        "program": program,
        "chips": chips,
        "images": chips * per_chip,
        "per_chip": per_chip,
        "memory": {"total_bytes": 2**30},
        "collectives": 3,
        "collective_bytes": 4_000_000,
        "compile_seconds": 9.0,
        "step_seconds": 2 * seconds,
        "step_seconds_hbm": seconds,
    }


def test_scaling_compares_equal_work_only():
    few = prediction(8, 8, 0.098)
    many = prediction(256, 8, 0.1)
    wide = prediction(256, 2, 0.05)
    alone = prediction(64, 8, 0.2)
    other = prediction(256, 8, 0.1, "sampler")
    assert cost.scaling([few, many, other]) == [
        "v5e train, 8 to 256 chips at 8 images a chip (weak scaling): "
        "efficiency 98.0 % by HBM traffic, 98.0 % by all bytes"
    ]
    # Four times the chips are four times as fast.
    assert cost.scaling([alone, wide]) == [
        "v5e train, 64 to 256 chips at 512 images altogether (strong scaling): "
        "efficiency 100.0 % by HBM traffic, 100.0 % by all bytes"
    ]


def test_the_table_has_a_row_a_file(tmp_path):
    for result in (prediction(256, 8, 0.1), prediction(8, 8, 0.1)):
        (tmp_path / f"{result['chips']}.json").write_text(json.dumps(result))
    title, _, head, _, first, second, _, line = cost.table(
        cost.read(str(tmp_path))
    ).splitlines()
    assert title == "v" and line.startswith("- v5e train, 8 to 256 chips")
    assert first.startswith(
        "| v5e:8 | train | 64 (8 a chip) | 8 | 1.00 | 1 | 2 | 1 | 4 (3) | 100 | 200 | 320 to 640 |"
    )
    assert second.startswith("| v5e:256 |") and head.count("|") == first.count("|")


def test_what_cannot_be_is_one_line(tmp_path, monkeypatch):
    refused(lambda: cost.chip_of("v9:2x2"), "--topology", "v9", "such as v5e:2x4")
    # Installed packages are looked for in this list.
    monkeypatch.setattr(sys, "path", [])
    refused(cost.compiler_version, "libtpu", 'pip install "jax[tpu]"')
    refused(lambda: cost.read(str(tmp_path)), tmp_path, "--output")
    (tmp_path / "a.json").write_text("{}")
    refused(lambda: cost.read(str(tmp_path)), tmp_path / "a.json", "out of the folder")


# --- the script ---


def run(*arguments):
    # half the time to compile
    environment = os.environ | {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
    line = [sys.executable, "benchmarks/tpu/aot.py", *arguments]
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
@pytest.mark.parametrize("program", ["train", "sampler"])
def test_the_programs_compile_for_eight_chips(program, tmp_path):
    done = run(
        "--config=configs/covid.py:row1,toy",
        "--config.sampler.ensemble=3",
        f"--program={program}",
        "--per-chip=1" if program == "train" else "--total=8",
        "--profile=2",
        f"--output={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*.json")
    assert path.name == f"v5e-2x4_{program}_8_row1-8-16_32px_float32.json"
    (result,) = cost.read(str(tmp_path))
    assert (result["chips"], result["images"]) == (8, 8) and result["memory"][
        "total_bytes"
    ] > 2**16
    parameters = result["parameters"]
    if program == "train":
        # Every gradient crosses the links once; beside them a few sums.
        assert 4 * parameters <= result["collective_bytes"] < 1.1 * 4 * parameters
        assert result["flop"] == result["flop_loops_once"]
    else:
        assert result["collectives"] == 0
        # K x steps, but for what is computed once an image: encoding, and its shares of
        # the convolutions.
        assert result["flop"] == pytest.approx(
            3 * 2 * result["flop_loops_once"], rel=0.3
        )
