"""A headless Chromium that is driven over its debugging pipe: one JSON object each way, ended by a NUL (Chrome DevTools Protocol)."""
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ["chromium-headless-shell", "chromium"]


def program():
    """The browser; installs it where apt has it."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", NAMES[0]], **quiet)
        found = shutil.which(NAMES[0])
    return found or sys.exit(f"install {NAMES[0]}")


class Browser:
    """One page; `with` ends the browser."""

    def __init__(self):
        self.profile = tempfile.mkdtemp()
        theirs_in, self.out = os.pipe()
        self.answers, theirs_out = os.pipe()
        # The browser reads from descriptor 3 and writes to 4; the shell puts them there.
        command = ["sh", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "sh", program(), "--headless", "--no-sandbox", "--disable-gpu",
                   "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=[theirs_in, theirs_out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.number, self.session, self.requests = b"", 0, None, []
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        self.call("Network.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **params):
        """Asks the browser and waits for its answer; notes on the way which addresses the page asks for."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                more = os.read(self.answers, 1 << 20)
                assert more, "the browser has ended"
                self.rest += more
            text, self.rest = self.rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script):
        """What a JavaScript expression is worth."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script, seconds=60):
        """Until a JavaScript expression holds; its value."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            value = self.value(script)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"after {seconds} s not: {script}\n{self.value('document.body.innerText')[:2000]}")

    def texts(self, selector):
        """The text of every element that a selector finds."""
        return self.value(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")

    def picture(self, path, width=1100, height=900, dark=False):
        """A picture of the page as a window of that size shows it. Nothing of it may be wider than the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        # The page hears of its new size, and draws.
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        wide = self.value("document.documentElement.scrollWidth")
        assert wide <= width, f"the page is {wide} pixels wide in a window of {width}"
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        assert os.path.getsize(path) > 5000, f"{path} is empty"


class Swarm:
    """`dunlin local` or `local-train`; `with` ends it. `first` is its first line."""

    def __init__(self, *command):
        environment = {**os.environ, "DUNLIN_LOG": "error"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.first = json.loads(self.process.stdout.readline() or sys.exit("the swarm did not start"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.stdout.close()
        self.process.wait()
