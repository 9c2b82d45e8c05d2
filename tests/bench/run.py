#!/usr/bin/env python3
"""The benchmark behind `make bench`: plan, scrub and verify beside cp, Polars and DuckDB, in one run on one machine.

    run.py BINARY [--rows 4000000] [--runs 3] [--threads 2] [--only NAME]

Everything it needs it makes below .bench/: a virtual environment for the peers, the lake (gen.py, once), lists, job files. Each figure is the
median of --runs runs, which are interleaved; caches are warm. Times:

    wall, cpu, rss   of the whole child process, from wait4
    inside           what the program itself timed: of `plan` the stages load and find, of `scrub` all but verify and manifest (the
                     read-back is part of the rewrite), of a peer its work after its imports

No ratio is printed between programs that matched different rows; then the exit code is 1. Results go to .bench/result.json, too.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
BENCH = HERE.parent.parent / ".bench"
VENV = BENCH / "venv"
PACKAGES = ["duckdb==2.0.0", "numpy==2.4.6", "polars==2.1.0", "pyarrow==26.0.1"]
PEERS = ["polars", "duckdb"]


@dataclasses.dataclass(frozen=True)
class Case:
    order: str
    list: str
    peers: tuple  # of "find", "scrub"
    by_ledger: bool = False  # the list is imported into the ledger, and the job's list is the ledger

    @property
    def name(self):
        return f"{self.order}/{self.list}" + ("/ledger" if self.by_ledger else "")


# What is aimed at, as ratios of times inside: by case and work, over Polars and over DuckDB.
GOALS = {
    ("arrival/random_1k", "find"): {"polars": 0.3, "duckdb": 0.18},
    ("arrival/large", "find"): {"polars": 0.3, "duckdb": 0.18},
    ("arrival/five_million", "find"): {"polars": 0.35, "duckdb": 0.35},
    ("arrival/random_1k", "scrub"): {"polars": 0.6, "duckdb": 0.4},
    ("sorted/one_group", "scrub"): {"polars": 0.25, "duckdb": 0.12},
    ("sorted/spread_20", "scrub"): {"polars": 0.35, "duckdb": 0.2},
    ("csv/random_1k", "scrub"): {"polars": 0.3, "duckdb": 0.3},
}
VERIFY_GOAL = 1.2  # over the semi-join of Polars
HASHED_GOAL = 2.0  # find by hashes over find by addresses
LEDGER_GOAL = 2.5  # find from the ledger over find from the list that it was fed from
GATE_GOAL_S = 0.2  # wall of `gate` on an object of one row, with a million identifiers in the ledger
CP_GOAL = 1.5  # scrub of a small part over cp and fsync of the touched files

CASES = [
    Case("arrival", "random_1k", ("find", "scrub")),
    Case("arrival", "random_1k", (), by_ledger=True),
    Case("arrival", "large", ("find",)),
    Case("arrival", "large", (), by_ledger=True),
    Case("arrival", "five_million", ("find",)),
    Case("arrival", "five_million_sha256", ()),
    Case("sorted", "random_1k", ()),
    Case("sorted", "one_group_of_five", ()),
    Case("sorted", "all_groups", ()),
    Case("sorted", "one_group", ("scrub",)),
    Case("sorted", "spread_20", ("scrub",)),
    Case("sorted", "clustered_1k", ("find", "scrub")),
    Case("csv", "random_1k", ("find", "scrub")),
]

# ----------------------------------------------------------------------------------------------------------- preparation


def make_venv():
    stamp = VENV / "packages.json"
    if stamp.exists() and json.loads(stamp.read_text()) == PACKAGES:
        return
    print(f"making {VENV} with {', '.join(PACKAGES)}", file=sys.stderr)
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    except subprocess.CalledProcessError:
        sys.exit("bench: python3 cannot make a virtual environment; on Debian: apt-get install python3-venv")
    subprocess.run([VENV / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES], check=True)
    stamp.write_text(json.dumps(PACKAGES))


def make_lake(rows, threads):
    made = BENCH / "lake" / "lake.json"
    if not made.exists() or json.loads(made.read_text())["rows_asked"] != rows:
        print(f"making {BENCH / 'lake'} of {rows:,} rows", file=sys.stderr)
        command = [VENV / "bin" / "python", HERE / "gen.py", "--out", BENCH / "lake", "--rows", str(rows), "--jobs", str(threads)]
        subprocess.run(command, check=True)
    return json.loads(made.read_text())


def write_job(case, threads):
    """A job over the copy in .bench/work/lake; paths are relative to the job file."""
    name = case.name.replace("/", "-")
    path = BENCH / "jobs" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    columns = f"""
[[list.column]]
column = "email"
kind = "email"
{'hashed = "sha256-hex"' if case.list.endswith("sha256") else ""}
"""
    path.write_text(f"""\
version = 1
name = "bench-{name}"

[state]
uri = "../work/state/"
signing_key = "../keys/signing.key"
tag_key = "../keys/tag.key"

[guard]
max_fraction = 1.0
max_rows = 1_000_000_000

[resources]
threads = {threads}

[[list]]
name = "{case.list}"
uri = "{"ledger" if case.by_ledger else f"../lake/lists/{case.list}.txt"}"
{"" if case.by_ledger else columns}
[[dataset]]
name = "{case.order}"
uri = "../work/lake/"
format = "{"csv" if case.order == "csv" else "parquet"}"

[[dataset.match]]
column = "email"
kind = "email"
""")
    return path


def fresh_copy(case):
    shutil.rmtree(BENCH / "work", ignore_errors=True)
    (BENCH / "work" / "out").mkdir(parents=True)
    shutil.copytree(BENCH / "lake" / case.order, BENCH / "work" / "lake")


# ----------------------------------------------------------------------------------------------------------- measurement


@dataclasses.dataclass
class Sample:
    wall_s: float
    cpu_s: float
    rss_mb: float
    foreign_cores: float  # busy with other work meanwhile
    inside_s: float | None = None
    rows_matched: int | None = None
    stages: dict = dataclasses.field(default_factory=dict)


def busy_seconds():
    """CPU time of the whole machine spent on anything but idling and waiting for disks."""
    fields = [int(n) for n in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def measure(command, results_on_stdout=True):
    """Runs `command`, which must succeed, and returns its sample and the JSON document it printed."""
    os.sync()  # what others left to write is not this one's cost
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        busy, start = busy_seconds(), time.perf_counter()
        child = subprocess.Popen([str(word) for word in command], stdout=out, stderr=log, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        busy = busy_seconds() - busy
        out.seek(0), log.seek(0)
        if child.returncode != 0:
            words = " ".join(child.args)
            sys.exit(f"bench: exit {child.returncode} of: {words}\n{out.read()[-2000:]}\n{log.read()[-4000:]}")
        cpu = usage.ru_utime + usage.ru_stime
        sample = Sample(wall, cpu, usage.ru_maxrss / 1024, max(0.0, busy - cpu) / wall)
        return sample, json.load(out) if results_on_stdout else None


def fill_ledger(case, binary, job):
    listed = BENCH / "lake" / "lists" / f"{case.list}.txt"
    sample, _ = measure([binary, "requests", "import", job, listed, "--column", "email=email", "--json", "--progress", "never"])
    return sample


def measure_gate(binary, runs):
    """One object of one row before a ledger of a million; the first look, which makes the probe file, is not counted."""
    case = Case("gate", "million", (), by_ledger=True)
    shutil.rmtree(BENCH / "work", ignore_errors=True)
    (BENCH / "work" / "lake").mkdir(parents=True)
    row = BENCH / "work" / "lake" / "one.csv"
    row.write_text("email,city\nnobody.listed@example.com,Bonn\n")
    job = write_job(dataclasses.replace(case, order="csv"), 2)
    samples = {"lakescrub requests import": [fill_ledger(case, binary, job)]}
    looks = [measure([binary, "gate", job, row, "--json", "--progress", "never"])[0] for _ in range(runs + 1)]
    samples["lakescrub gate"] = looks[1:]
    shutil.rmtree(BENCH / "work")
    return {name: median(many) for name, many in samples.items()}


def measure_lakescrub(binary, command, job):
    sample, result = measure([binary, command, job, "--json", "--progress", "never"])
    sample.stages = {stage["name"]: stage["seconds"] for stage in result.get("run", {}).get("stages", [])}
    if "find" in sample.stages:
        apart = ("plan",) if command == "plan" else ("verify", "manifest")
        sample.inside_s = sum(seconds for name, seconds in sample.stages.items() if name not in apart)
    matched = [dataset.get("rows", {}).get("matched") for dataset in result.get("datasets", [])]
    # After a scrub `verify` matches nothing; that it exits 0 says so.
    if command != "verify" and matched and all(isinstance(rows, int) for rows in matched):
        sample.rows_matched = sum(matched)
    return sample


def measure_peer(engine, work, case, threads):
    objects = sorted(str(path) for path in (BENCH / "lake" / case.order).iterdir())
    command = [VENV / "bin" / "python", HERE / "peers.py", engine, work, "--threads", threads]
    command += ["--list", BENCH / "lake" / "lists" / f"{case.list}.txt", "--out", BENCH / "work" / "out", *objects]
    sample, result = measure(command)
    sample.inside_s, sample.rows_matched = result["seconds"], result["rows_matched"]
    return sample


def measure_cp(objects):
    target = BENCH / "work" / "copy"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    copy = 'cp --reflink=never "$@" "$0" && sync "$0"/*'
    sample, _ = measure(["sh", "-c", copy, target, *objects], results_on_stdout=False)
    shutil.rmtree(target)
    return sample


def warm(folder):
    # Not read here: a child's peak memory starts at what its parent once had.
    subprocess.run(["cat", *folder.iterdir()], check=True, stdout=subprocess.DEVNULL)


def run_case(case, binary, threads, runs):
    job = write_job(case, threads)
    samples = collections.defaultdict(list)
    for run in range(runs):
        print(f"{case.name}: run {run + 1} of {runs}", file=sys.stderr)
        fresh_copy(case)
        if case.by_ledger:
            samples["lakescrub requests import"].append(fill_ledger(case, binary, job))
        warm(BENCH / "lake" / case.order)
        before = {path.name: path.stat().st_mtime_ns for path in (BENCH / "work" / "lake").iterdir()}
        for command in ("plan", "scrub", "verify"):
            samples[f"lakescrub {command}"].append(measure_lakescrub(binary, command, job))
        changed = [path.name for path in (BENCH / "work" / "lake").iterdir() if path.stat().st_mtime_ns != before.get(path.name)]
        for work in case.peers:
            for engine in PEERS:
                samples[f"{engine} {work}"].append(measure_peer(engine, work, case, threads))
        originals = BENCH / "lake" / case.order
        samples["cp + sync"].append(measure_cp(sorted(originals.iterdir())))
        samples["cp + sync of the touched"].append(measure_cp([originals / name for name in sorted(changed)]))
    shutil.rmtree(BENCH / "work")
    return {name: median(many) for name, many in samples.items()}


def median(samples):
    """The median of each figure; counts must agree between runs."""
    counts = {sample.rows_matched for sample in samples}
    if len(counts) != 1:
        sys.exit(f"bench: the same command matched different rows from run to run: {counts}")
    middle = lambda name: statistics.median(getattr(sample, name) for sample in samples)
    inside = [sample.inside_s for sample in samples if sample.inside_s is not None]
    stages = {name: statistics.median(sample.stages[name] for sample in samples) for name in samples[0].stages}
    figures = [middle(name) for name in ("wall_s", "cpu_s", "rss_mb", "foreign_cores")]
    return Sample(*figures, statistics.median(inside) if inside else None, counts.pop(), stages)


# ---------------------------------------------------------------------------------------------------------------- report


class Ratios:
    """Collects sentences; refuses to compare what matched different rows."""

    def __init__(self):
        self.lines, self.values, self.refused = [], {}, False

    def add(self, label, a, b, figure, same_rows=True, goal=None):
        """`figure` of sample `a` over that of `b`; `goal` is what it should not exceed."""
        if same_rows and (a.rows_matched is None or a.rows_matched != b.rows_matched):
            self.refused = True
            self.lines.append(f"{label:<62} refused: matched rows differ ({a.rows_matched} and {b.rows_matched})")
            return
        over, under = getattr(a, figure), getattr(b, figure)
        if over is None or under is None:
            self.lines.append(f"{label:<62} not measured: no stage times in the result")
            return
        self.values[label] = over / under
        aim = "" if goal is None else f"   goal {goal:.2f} {'met' if over / under <= goal else 'missed'}"
        self.lines.append(f"{label:<62} {over:8.2f} / {under:8.2f} s = {over / under:5.2f}{aim}")


def compare(results, made):
    ratios = Ratios()
    for case in CASES:
        rows = results.get(case.name)
        if rows is None:
            continue
        planned = made["lists"][case.list]["rows_matched"]
        if case.order != "csv" and rows["lakescrub scrub"].rows_matched != planned:
            ratios.refused = True
            ratios.lines.append(f"{case.name}: lakescrub matched {rows['lakescrub scrub'].rows_matched} rows, the lake holds {planned}")
        for engine in PEERS:
            if "find" in case.peers:
                goal = GOALS.get((case.name, "find"), {}).get(engine)
                ratios.add(f"{case.name}: find, lakescrub over {engine}, inside", rows["lakescrub plan"], rows[f"{engine} find"], "inside_s", goal=goal)
                ratios.add(f"{case.name}: find, lakescrub plan over {engine}, wall", rows["lakescrub plan"], rows[f"{engine} find"], "wall_s")
                ratios.add(f"{case.name}: find, lakescrub plan over {engine}, cpu", rows["lakescrub plan"], rows[f"{engine} find"], "cpu_s")
            if "scrub" in case.peers:
                goal = GOALS.get((case.name, "scrub"), {}).get(engine)
                ratios.add(f"{case.name}: scrub, lakescrub over {engine}, inside", rows["lakescrub scrub"], rows[f"{engine} scrub"], "inside_s", goal=goal)
                ratios.add(f"{case.name}: scrub, lakescrub over {engine}, wall", rows["lakescrub scrub"], rows[f"{engine} scrub"], "wall_s")
                ratios.add(f"{case.name}: scrub, lakescrub over {engine}, cpu", rows["lakescrub scrub"], rows[f"{engine} scrub"], "cpu_s")
        ratios.add(f"{case.name}: scrub over cp + sync, wall", rows["lakescrub scrub"], rows["cp + sync"], "wall_s", same_rows=False)
        if case.list in ("one_group", "spread_20"):
            label = f"{case.name}: scrub, inside, over cp + sync of the touched"
            inside = dataclasses.replace(rows["lakescrub scrub"], wall_s=rows["lakescrub scrub"].inside_s)
            ratios.add(label, inside, rows["cp + sync of the touched"], "wall_s", same_rows=False, goal=CP_GOAL)
        if "polars find" in rows:
            label = f"{case.name}: verify over the semi-join of polars, wall"
            semi_join = dataclasses.replace(rows["polars find"], wall_s=rows["polars find"].inside_s)
            ratios.add(label, rows["lakescrub verify"], semi_join, "wall_s", same_rows=False, goal=VERIFY_GOAL)
    plain, hashed = (results.get(f"arrival/five_million{name}") for name in ("", "_sha256"))
    if plain and hashed:
        label = "arrival: find by 5 M hashes over find by 5 M addresses, inside"
        ratios.add(label, hashed["lakescrub plan"], plain["lakescrub plan"], "inside_s", goal=HASHED_GOAL)
    for name in ("random_1k", "large"):
        plain, ledger = (results.get(f"arrival/{name}{source}") for source in ("", "/ledger"))
        if plain and ledger:
            for figure, what in (("inside_s", "inside"), ("cpu_s", "cpu")):
                label = f"arrival/{name}: find from the ledger over find from the list, {what}"
                ratios.add(label, ledger["lakescrub plan"], plain["lakescrub plan"], figure, goal=LEDGER_GOAL)
    if gate := results.get("gate/million/ledger"):
        seconds = gate["lakescrub gate"].wall_s
        ratios.lines.append(f"gate of one row, a million identifiers: {seconds * 1000:.0f} ms   goal {GATE_GOAL_S * 1000:.0f} ms {'met' if seconds <= GATE_GOAL_S else 'missed'}")
    few, all_groups = (results.get(f"sorted/{name}") for name in ("one_group_of_five", "all_groups"))
    if few and all_groups:
        for figure in ("wall_s", "cpu_s"):
            label = f"sorted: scrub of 1 row group in 5 over all, {figure[:-2]}"
            ratios.add(label, few["lakescrub scrub"], all_groups["lakescrub scrub"], figure, same_rows=False)
    return ratios


def table(results):
    header = ["case", "what", "wall s", "cpu s", "rss MB", "inside s", "rows matched", "others", "stages"]
    lines = [header]
    show = lambda value, form: "-" if value is None else format(value, form)
    for name, rows in results.items():
        for what, sample in rows.items():
            stages = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in sample.stages.items())
            figures = [f"{sample.wall_s:.2f}", f"{sample.cpu_s:.2f}", f"{sample.rss_mb:.0f}", show(sample.inside_s, ".2f")]
            lines.append([name, what, *figures, show(sample.rows_matched, ","), f"{sample.foreign_cores:.1f}", stages])
            name = ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    left = {0, 1, len(header) - 1}
    cells = lambda line: (cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths)))
    return "\n".join("  ".join(cells(line)).rstrip() for line in lines)


def folder_mb(folder):
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def main():
    parser = argparse.ArgumentParser(description="lakescrub beside cp, Polars and DuckDB")
    parser.add_argument("binary", type=pathlib.Path, help="lakescrub, release build")
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows in each order of the lake (default 4000000)")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is taken (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="for every program (default 2)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    binary = args.binary.resolve()
    if not os.access(binary, os.X_OK):
        sys.exit(f"bench: {binary} is not there or cannot be run; `make bench` builds it")

    BENCH.mkdir(exist_ok=True)
    make_venv()
    made = make_lake(args.rows, args.threads)
    if not (BENCH / "keys" / "signing.key").exists():
        subprocess.run([binary, "keygen", BENCH / "keys"], check=True, stdout=subprocess.DEVNULL)
    results = {case.name: run_case(case, binary, args.threads, args.runs) for case in CASES if args.only in case.name}

    if args.only in "gate/million/ledger":
        results["gate/million/ledger"] = measure_gate(binary, args.runs)

    ratios = compare(results, made)
    sizes = {order: round(folder_mb(BENCH / "lake" / order)) for order in ("arrival", "sorted", "csv")}
    print(f"{made['rows']:,} rows in each order, {made['files']} objects of {made['row_groups_per_file']} row groups; MB {sizes};", end=" ")
    print(f"{os.cpu_count()} cores, {args.threads} threads, medians of {args.runs}; others: cores busy with other work\n")
    print(table(results))
    print("\n" + "\n".join(ratios.lines))
    report = {
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "settings": {"rows": made["rows"], "runs": args.runs, "threads": args.threads, "packages": PACKAGES},
        "binary_size_bytes": binary.stat().st_size,
        "lake": made | {"size_mb": sizes},
        "cases": {name: {what: dataclasses.asdict(sample) for what, sample in rows.items()} for name, rows in results.items()},
        "ratios": ratios.values,
    }
    (BENCH / "result.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if ratios.refused else 0


if __name__ == "__main__":
    sys.exit(main())
