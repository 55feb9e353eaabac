"""The conductor's page in a real browser: a local run trains, loses a peer, and the page shows both.

    training.py --dunlin target/release/dunlin --text FILE [--out FOLDER]

Writes pictures of the page into FOLDER.
"""
import argparse
import os
import re
import signal
import tempfile

from browser import Browser, Swarm

parser = argparse.ArgumentParser()
parser.add_argument("--dunlin", required=True)
parser.add_argument("--text", required=True)
parser.add_argument("--out", default="target/page")
args = parser.parse_args()

RUN = f"""
model: {{config: {{architecture: llama, hiddenSize: 64, layers: 4, heads: 4, kvHeads: 2, ffn: 176, contextLength: 128, ropeBase: 10000.0,
                  rmsEps: 0.00001, tied: true}}}}
data: {{text: {{path: "{args.text}"}}, tokenizer: Bytes, validationFraction: 0.01}}
sequenceLength: 64
globalBatch: 32
microbatch: 4
steps: 100000
seed: 1
optimizer: {{kind: AdamW, learningRate: 0.001, beta1: 0.9, beta2: 0.95, epsilon: 1.0e-8, weightDecay: 0.1, momentum: 0.0, clip: 1.0,
             schedule: {{kind: Constant, warmupSteps: 20}}}}
stages: 2
validation: {{everySteps: 10, batches: 2}}
checkpoint: {{everySteps: 25, keep: 2, destination: CHECKPOINTS}}
"""


def number(page, name):
    return float(page.texts(f"#{name}")[0].split()[0])


def points(page, name):
    return [tuple(map(float, p.split(","))) for p in (page.value(f"document.getElementById('{name}').getAttribute('points')") or "").split()]


def check(page):
    assert page.texts("#phase") == ["Training"], page.texts("#phase")
    assert 0 < number(page, "loss") < 6 and number(page, "speed") > 0
    # A point a step; the curve of a loss that falls begins at the top and ends below (y grows downwards).
    curve = points(page, "curve")
    assert len(curve) >= 40 and curve[-1][1] > curve[0][1] + 50, curve
    assert len(points(page, "held-back")) >= 3 and len(points(page, "tokens")) >= 40
    stages = page.texts("tr.stage")
    assert [re.match(r"stage \dlayers \d-\d", stage)[0] for stage in stages] == ["stage 0layers 0-1", "stage 1layers 2-3"], stages
    # Axes have numbers, and say what they count.
    ticks = page.texts("svg text")
    assert "step" in ticks and sum(re.fullmatch(r"[\d.]+", tick) is not None for tick in ticks) >= 12, ticks


with tempfile.TemporaryDirectory() as folder:
    config = os.path.join(folder, "run.yaml")
    with open(config, "w", encoding="utf-8") as file:
        file.write(RUN.replace("CHECKPOINTS", f'"{folder}/checkpoints"'))
    with Swarm(args.dunlin, "local-train", "--config", config, "--peers", "4") as swarm, Browser() as page:
        page.open(swarm.first["url"] + "/")
        page.wait("parseInt(document.getElementById('step').textContent) > 50")
        check(page)
        assert number(page, "lost") == 0 and not page.texts("circle.lost")
        assert page.value("document.querySelectorAll('circle.save').length") >= 1
        before = number(page, "step")
        os.kill(next(p["pid"] for p in swarm.first["processes"] if p["role"] == "peer"), signal.SIGKILL)
        page.wait("document.querySelector('circle.lost') !== null")
        page.wait(f"parseInt(document.getElementById('step').textContent) > {before} + 40")
        check(page)
        assert number(page, "lost") == 1
        page.picture(os.path.join(args.out, "training.png"))
        page.picture(os.path.join(args.out, "training-phone.png"), width=390, height=1400, dark=True)
        after = number(page, "step")
print(f"the page shows step {before:.0f}, then {after:.0f} with 1 peer lost")
