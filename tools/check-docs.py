"""Fails when a list in docs/ and the code differ: names what only one of them has.

Reasons and Events, metrics, reasons of recoveries, messages of training, quoted messages, flags, variables, chart values and their reference, Make targets, scenarios, HTTP paths, rooms and
roles, paths of this repository, and the modules that a lib.rs tells about. Also when a script has the name of one of Python's own modules. (The table of docs/security.md is held to the code by worker/wire/tests/callers.rs, the references
of fields by crds/src/generated.rs, the crates by e2e/tests/dependencies.rs.)
"""

import importlib
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# CamelCase words of the operator that are not reasons: Kubernetes' own, conditions, nouns of messages, units.
NO_REASONS = set("""
AlwaysAllow Bytes Conductor ConfigMap ContainerCreating CrashLoopBackOff CreateContainerConfigError CreateContainerError Created Degraded
Deployment Egress Ei Equal ErrImageNeverPull ErrImagePull Exists FallbackToLogsOnError False Gi IfNotPresent ImagePullBackOff In InferenceSwarm Ingress
InvalidImageName Karpenter Ki Mi Model ModelLoaded NetworkPolicy Never NoExecute NoSchedule NotIn OnRootMismatch Opaque Peer Pi Pod
PodDisruptionBudget PodScheduled Ready Reconcile Reconciling Replaced ReplicaFailure RollingUpdate RunContainerError Running RuntimeDefault Secret
Service Stalled Ti ToBeDeletedByClusterAutoscaler Trainer TrainingSwarm True Unschedulable
""".split())
# Reasons and messages in the docs that are other programs'.
OTHER_REASONS = {"PermissionDenied", "FailedUpdateScale"}
OTHER_MESSAGES = {"would violate the pod's disruption budget"}
# Flags in the docs that are other programs'.
OTHER_FLAGS = set("""
all all-namespaces create-namespace example from-literal locked namespace nocapture release set strict test tests wait
""".split())
# Variables in the docs that are not read by a name in our code.
OTHER_VARIABLES = {"POD_NAME"}

LITERAL = re.compile(r"""//[^\n]*|'(?:\\.|[^\\'])'|r(#*)"(?P<raw>.*?)"\1|"(?P<plain>(?:[^"\\]|\\.)*)\"""", re.S)
problems: list[str] = []


def read(path: str) -> str:
    return (ROOT / path).read_text()


def code(*folders: str) -> dict[str, str]:
    """What is shipped of the Rust under these folders, by path: no tests."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.rs")) if "/tests/" not in str(file)]
    texts = {file: file.read_text() for file in files}
    only_tests = set()
    for file, text in texts.items():
        place = file.parent if file.stem in ("mod", "lib", "main") else file.parent / file.stem
        for name in re.findall(r"#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))? )?mod (\w+);", text):
            only_tests |= {place / f"{name}.rs", place / name / "mod.rs"}
    return {
        str(file.relative_to(ROOT)): re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]
        for file, text in texts.items()
        if file not in only_tests
    }


def literals(text: str) -> list[str]:
    """The string literals of Rust code, as the program has them."""
    found = []
    for match in LITERAL.finditer(text):
        if match["raw"] is not None:
            found.append(match["raw"])
        elif match["plain"] is not None:
            plain = re.sub(r"\\\n\s*", "", match["plain"])
            found.append(plain.replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\"))
    return found


def table(page: str, head: str) -> list[list[str]]:
    """The rows below the first line of `page` that begins with `head`."""
    lines = read(page).splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(head)), None)
    if start is None:
        problems.append(f"{page}: no table begins with `{head}`")
        return []
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def snippets(page: pathlib.Path) -> list[str]:
    """Code of a page: spans, and lines of blocks with what a backslash continues."""
    text = page.read_text()
    fences = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", rest) + [line for f in fences for line in f.replace("\\\n", " ").splitlines()]


def same(what: str, where: str, ours: set[str], theirs: set[str]) -> None:
    problems.extend(f"{what} `{name}` is in the code, not in {where}" for name in sorted(ours - theirs))
    problems.extend(f"{what} `{name}` is in {where}, not in the code" for name in sorted(theirs - ours))


def reasons() -> None:
    said = [word for text in code("operator/src", "worker/src/stage", "worker/src/model").values() for word in literals(text)]
    ours = {word for word in said if re.fullmatch(r"(?:[A-Z][a-z0-9]+)+", word)} - NO_REASONS
    formed = [word for word in said if re.fullmatch(r"\{noun\}\w*(?:\{what\})?", word)]
    for word in formed:
        for noun in ("Peer", "Conductor", "Trainer"):
            ours |= {word.format(noun=noun, what=what) for what in ("Replaced", "Created")}
    conditions = {name for row in table("docs/observe.md", "| reason |") for name in spans(row[0])}
    events = {name for row in table("docs/install.md", "| Event |") for name in spans(row[0])}
    same("reason", "docs/observe.md or the Events of docs/install.md", ours, conditions | events)
    known = conditions | events
    for row in table("docs/troubleshooting.md", "| what you see |"):
        for name in spans(row[0]):
            if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", name) and name not in known | OTHER_REASONS:
                problems.append(f"docs/troubleshooting.md: `{name}` is no reason")


def metrics() -> None:
    ours = set()
    for path, prefix in [
        ("operator/src/metrics.rs", "dunlin_operator_"),
        ("worker/gateway/src/metrics.rs", ""),
        ("worker/src/stage/metrics.rs", "dunlin_stage_"),
        ("worker/src/training/conductor/page.rs", ""),
    ]:
        text = code(str(pathlib.Path(path).parent))[path]
        named = re.findall(r'\b(register|register_with_unit|gauge|put)\(\s*"([\w:]+)"', text)
        ours |= {prefix + name + ("_seconds" if call == "register_with_unit" else "") for call, name in named}
        ours |= set(re.findall(r"# HELP (\w+) ", text))
    theirs = {name for row in table("docs/observe.md", "| metric |") for name in spans(row[0])}
    same("metric", "docs/observe.md", *({name.removesuffix("_total") for name in names} for names in (ours, theirs)))


def recoveries() -> None:
    path = "worker/protocol/src/gateway/recovery.rs"
    ours = set(re.findall(r'=> "(\w+)"', code("worker/protocol/src/gateway")[path]))
    same("recovery", "docs/protocol.md", ours, {spans(row[0])[0] for row in table("docs/protocol.md", "| reason |")})


def training_messages() -> None:
    text = read("worker/protocol/src/training/message.rs")
    ours: set[str] = set()
    for kind in ("PeerReport", "TrainerReport", "ToPeer", "ToTrainer"):
        ours |= set(re.findall(r"^    (\w+)[ ,({]", re.search(rf"^pub enum {kind} \{{(.*?)^\}}", text, re.S | re.M)[1], re.M))
    theirs = {name for row in table("docs/training-messages.md", "| message |") for name in spans(row[0])}
    same("message", "docs/training-messages.md", ours, theirs)


def messages() -> None:
    """A quoted message is one that some program says; what it fills in stands as dots or a number. A message may be put together of several."""
    said = [text for file in code("crds", "operator", "worker", "cli").values() for text in literals(file)]
    for row in table("docs/troubleshooting.md", "| what you see |"):
        for quoted in re.findall(r'"([^"]{8,})"', row[0]):
            for part in filter(None, map(str.strip, re.split(r"\.\.\.|…|\d+|[():]", quoted))):
                if part not in OTHER_MESSAGES and not any(part in text for text in said):
                    problems.append(f'docs/troubleshooting.md: nothing says "{part}" of "{quoted}"')


def flags() -> None:
    ours = set()
    for text in code("worker", "cli", "operator", "e2e/src", "crds").values():
        for arguments, field in re.findall(r"#\[arg\((.*?)\)\]\n\s*(?:pub )?(\w+):", text, re.S):
            given = re.search(r'long = "([^"]+)"', arguments)
            if given or re.search(r"\blong\b", arguments):
                ours.add(given[1] if given else field.replace("_", "-"))
    ours |= set(re.findall(r"--([a-z][a-z-]+)", read("e2e/cluster/cluster")))
    for program in ["worker/sim/src/main.rs", "operator/sim/src/main.rs"]:
        ours |= set(re.findall(r'"--([a-z][a-z-]+)"', read(program)))
    for script in sorted((ROOT / "e2e").rglob("*.py")):
        ours |= set(re.findall(r'"--([a-z][a-z-]+)"', script.read_text()))
    for page in DOCS:
        for snippet in snippets(page):
            for flag in re.findall(r"(?<![-\w])--([a-z][a-z0-9-]*)", snippet):
                if flag not in ours | OTHER_FLAGS:
                    problems.append(f"{page.relative_to(ROOT)}: no program has --{flag}")


def variables() -> None:
    scripts = [p for pattern in ("*.sh", "*.py", "*.rs", "Makefile", "cluster") for p in ROOT.glob(f"[!t]*/**/{pattern}")]
    ours = read("Makefile") + "".join(p.read_text() for p in scripts if p.is_file())
    for page in [*DOCS, *sorted((ROOT / "charts/dunlin/templates").glob("*.yaml"))]:
        for name in re.findall(r"\b(?:DUNLIN|AWS|POD|NODE)_[A-Z_0-9]+\b", page.read_text()):
            if name not in ours and name not in OTHER_VARIABLES:
                problems.append(f"{page.relative_to(ROOT)}: nothing reads {name}")


def chart_values() -> None:
    schema = json.loads(read("charts/dunlin/values.schema.json"))
    for page in DOCS:
        for snippet in snippets(page):
            named = re.findall(r"(?:^|[\s,])([a-zA-Z]+(?:\.[a-zA-Z]+)+)(?==|$)", snippet)
            for path in named:
                node = schema
                keys = path.split(".")
                if keys[0] not in schema["properties"] or keys[-1] in ("yaml", "md", "json"):
                    continue
                for key in keys:
                    node = node.get("properties", {}).get(key, {})
                    if "$ref" in node:
                        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
                if not node:
                    problems.append(f"{page.relative_to(ROOT)}: the chart has no value {path}")
    reference = importlib.import_module("chart-values")
    if not reference.PAGE.exists() or reference.PAGE.read_text() != reference.page():
        problems.append(f"{reference.PAGE.relative_to(ROOT)} is not what the chart says: `make chart-values` writes it anew")
    lines = read("charts/dunlin/values.yaml").splitlines()
    for before, line in zip(lines, lines[1:]):
        value = re.match(r"\s+(\w+): \S", line) or re.match(r"\s+(resources):$", line)
        if value and not before.lstrip().startswith("#") and value[1] not in ("requests", "limits"):
            problems.append(f"charts/dunlin/values.yaml: {value[1]} is not described")


def make_targets() -> None:
    makefile = read("Makefile")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.M))
    for target in targets - set(re.findall(r"^([a-z][a-z0-9-]*):.*## ", makefile, re.M)):
        problems.append(f"Makefile: {target} has no words for `make help`")
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", makefile, re.M)
    same("target", "Makefile's .PHONY", targets, set(phony[1].replace("\\", " ").split()))
    for page in DOCS:
        for snippet in snippets(page):
            for target in re.findall(r"(?:^|[\s(])make ([a-z][a-z0-9-]*)", snippet):
                if target not in targets:
                    problems.append(f"{page.relative_to(ROOT)}: no target {target}")


def scenarios() -> None:
    ours = {name for text in code("e2e/src/scenarios").values() for name in re.findall(r'name: "([a-z0-9-]+)",\s*run', text)}
    theirs = set()
    for row in table("docs/cluster.md", "| scenario |"):
        last = ""
        for name in re.split(r",\s*", row[0]):
            # `…-api-server-is-down` has the beginning of the one before.
            if name.startswith("…"):
                ends = [n for n in ours if n.endswith(name[1:]) and n[:12] == last[:12]]
                name = ends[0] if len(ends) == 1 else name
            last = name
            theirs.add(name)
    same("scenario", "docs/cluster.md", ours, theirs)


def http_paths() -> None:
    text = "".join(code("worker/gateway/src").values())
    ours = {path.replace("{*id}", "ID") for path in re.findall(r'\.route\(\s*"([^"]+)"', text)}
    theirs = {path.split(" ")[-1] for row in table("docs/api.md", "| path |") for path in spans(row[0])}
    same("path", "docs/api.md", ours, theirs)


def rooms() -> None:
    page = read("docs/architecture.md")
    members = set(re.search(r"members = \[(.*?)\]", read("Cargo.toml"), re.S)[1].replace('"', "").replace(",", " ").split())
    rows = table("docs/architecture.md", "| folder |")
    same("crate", "docs/architecture.md", members, {spans(row[0])[0].rstrip("/") for row in rows if row[1]})
    cli = code("worker/src")["worker/src/cli.rs"]
    cli = re.sub(r"#\[command\(hide = true\)\]\s*\w+", "", cli)
    variants = re.findall(r"^    (\w+)\(", re.search(r"pub enum WorkerRole \{(.*?)^\}", cli, re.S | re.M)[1], re.M)
    ours = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in variants}
    row = next(line for line in page.splitlines() if line.startswith("| `worker/` |"))
    same("role", "docs/architecture.md", ours, set(spans(row)) - {"worker/"})


def paths() -> None:
    """What looks like a path of this repository is one; `*` stands for any name."""
    tops = {p.name for p in ROOT.iterdir() if p.is_dir()} - {"target"}
    for page in DOCS:
        for snippet in snippets(page):
            for path in re.findall(r"(?<![\w./$<-])\w[\w.-]*/[\w./*-]*[\w*/]", snippet):
                if path.split("/")[0] in tops and "…" not in snippet and not list(ROOT.glob(path.rstrip("/"))):
                    problems.append(f"{page.relative_to(ROOT)}: there is no {path}")


def modules() -> None:
    """A lib.rs that tells what is where tells all of it."""
    for path, text in code("worker", "operator", "kernels", "crds", "e2e/src").items():
        told = "\n".join(re.findall(r"^//!(.*)$", text, re.M))
        if not path.endswith("lib.rs") or "* [`" not in told:
            continue
        untold = [name for name in re.findall(r"^pub mod (\w+);", text, re.M) if f"`{name}`" not in told and f"`{name}::" not in told]
        problems.extend(f"{path}: what is in `{name}` is not told" for name in untold)


def scripts() -> None:
    """A script hides the module of its name from itself and from those beside it."""
    for script in ROOT.glob("*/**/*.py"):
        if script.stem in sys.stdlib_module_names and not {"target", "node_modules"} & set(script.parts):
            problems.append(f"{script.relative_to(ROOT)}: it hides Python's own module `{script.stem}` from what it imports; give it another name")


for check in [reasons, metrics, recoveries, training_messages, messages, flags, variables, chart_values, make_targets, scenarios, http_paths, rooms, paths, modules, scripts]:
    before = len(problems)
    check()
    problems[before:] = dict.fromkeys(problems[before:])
print("\n".join(problems) or f"{len(DOCS)} pages agree with the code")
sys.exit(1 if problems else 0)
