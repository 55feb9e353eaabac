"""What the page must show before and after a peer is lost: check.py BEFORE.html AFTER.html"""
import re
import sys


def page(path):
    with open(path, encoding="utf-8") as file:
        html = file.read()

    def text(name):
        found = re.search(rf'id="{name}"[^>]*>([^<]*)<', html)
        assert found, f"{path} has no element {name}"
        return found.group(1)

    def points(name):
        found = re.search(rf'id="{name}"[^>]*points="([^"]*)"', html)
        return [tuple(map(float, p.split(","))) for p in found.group(1).split()] if found else []

    stages = re.findall(r'<tr class="stage"><td>stage (\d+)</td><td>layers ([\d-]+)</td><td>.*?(\d+)</td></tr>', html)
    return {"step": int(text("step").split()[0]), "phase": text("phase"), "loss": float(text("loss")), "lost": int(text("lost")),
            "speed": int(text("speed")), "curve": points("curve"), "held back": points("held-back"), "stages": stages}


before, after = map(page, sys.argv[1:])
for shown in (before, after):
    assert shown["phase"] == "Training", shown["phase"]
    assert 0 < shown["loss"] < 6 and shown["speed"] > 0, shown
    # A point a step; the curve of a loss that falls begins at the top and ends below (y grows downwards).
    assert len(shown["curve"]) >= 40 and shown["curve"][-1][1] > shown["curve"][0][1] + 50, shown["curve"]
    assert len(shown["held back"]) >= 3, shown["held back"]
    assert [(number, layers) for number, layers, _ in shown["stages"]] == [("0", "0-1"), ("1", "2-3")], shown["stages"]
assert [peers for *_, peers in before["stages"]] == ["2", "2"], before["stages"]
assert before["lost"] == 0 and after["lost"] == 1, (before["lost"], after["lost"])
assert after["step"] > before["step"] and len(after["curve"]) > len(before["curve"])
print(f"the page shows step {before['step']}, then {after['step']} with {after['lost']} peer lost")
