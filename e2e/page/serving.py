"""The gateway's page in a real browser: it asks, a peer is killed while the answer comes, and the page shows where.

    serving.py --dunlin target/release/dunlin --model FILE [--out FOLDER]

Writes pictures of the page into FOLDER.
"""
import argparse
import os
import re
import signal

from browser import Browser, Swarm

parser = argparse.ArgumentParser()
parser.add_argument("--dunlin", required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--out", default="target/page")
args = parser.parse_args()

QUESTION = "Write a long story about a lighthouse keeper and the sea."
IDLE = "!running && document.querySelector('#said div:last-child').textContent.length > 0"


def answer(page):
    return page.value("[...document.querySelectorAll('#said div:last-child span')].map(e => e.textContent).join('')")


def ask(page):
    """Types a question and sends it. Greedy, so that two answers are comparable."""
    page.value(f"document.getElementById('text').value = '{QUESTION}'; document.getElementById('ask').requestSubmit()")


with Swarm(args.dunlin, "local", "--model", args.model, "--peers", "3") as swarm, Browser() as page:
    url = swarm.first["url"]
    page.open(url + "/")
    page.wait("document.querySelectorAll('#peers i').length === 90")
    assert page.value("document.querySelectorAll('#peers i.own').length") == 30
    assert page.value("document.querySelectorAll('#peers i.kept').length") == 30
    assert page.wait("document.getElementById('model').value")
    assert page.texts("#why") == [""] and "None yet" in page.texts("#recoveries")[0]

    # The page samples as the model's makers say; here two answers are compared.
    page.value("answering = { temperature: 0, max_tokens: 300 }")
    ask(page)
    page.wait(IDLE)
    whole = answer(page)
    assert len(whole) > 300, whole
    assert not page.texts("mark.lost"), page.texts("mark.lost")

    page.value("document.getElementById('clear').click()")
    ask(page)
    page.wait("document.querySelectorAll('#said div:last-child span').length > 60")
    os.kill(swarm.first["peers"][1]["pid"], signal.SIGKILL)
    marks = page.wait("[...document.querySelectorAll('mark.lost')].map(e => e.textContent)")
    page.picture(os.path.join(args.out, "serving.png"))
    page.wait(IDLE)
    disturbed = answer(page)
    assert disturbed == whole, (whole, disturbed)
    assert len(marks) == 1 and re.fullmatch(r"(PeerLost|LinkDown), \d+ ms", marks[0]), marks
    before = page.value("[...document.querySelectorAll('#said div:last-child > *')].findIndex(e => e.matches('mark'))")
    assert 40 < before < 300, f"the mark stands before piece {before}"
    assert marks[0].split(",")[0] in page.texts("#recoveries")[0]
    page.picture(os.path.join(args.out, "serving-phone.png"), width=390, height=1600, dark=True)
    outside = [address for address in page.requests if not address.startswith((url, "about:", "data:"))]
    assert not outside, outside
print(f"the same answer of {len(whole)} characters, and a mark where a peer was lost: {marks[0]}")
