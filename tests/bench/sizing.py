#!/usr/bin/env python3
"""What a daily run costs on a lake of a petabyte, on paper: measured figures per byte and per request, times a simulated lake.

    sizing.py BINARY [--objects 40] [--vcpu-hour 0.04] [...]

Measured here: the requests that scrub sends for an object without and with a match, through a proxy that counts them in front of
ministack (from the tests' virtual environment; the objects are a slice of the benchmark's lake in .bench/, which `make bench` made), and
the CPU seconds per byte, from .bench/result.json. Simulated: object sizes (log-normal), who is in which object (Zipf), the day's list.
Prices are S3's in us-east-1 for requests within the region and one for a vCPU hour; each is an option.
"""

import argparse
import asyncio
import collections
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BENCH = ROOT / ".bench"
VENV = BENCH / "venv"
TEST_VENV = pathlib.Path(os.environ.get("LAKESCRUB_TEST_VENV", ROOT / ".venv"))

# ------------------------------------------------------------------------------------------------------ requests, counted


class CountingProxy:
    """Passes everything on and counts requests by kind, and the bytes of bodies in both directions."""

    def __init__(self, upstream):
        self.upstream, self.count = upstream, collections.Counter()
        self.port, ready = None, threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve(ready)), daemon=True).start()
        ready.wait()

    async def serve(self, ready):
        server = await asyncio.start_server(self.connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await server.serve_forever()

    async def connection(self, reader, writer):
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            while True:
                head, body = await message(reader)
                if not head:
                    break
                line = head.split(b"\r\n", 1)[0].decode()
                self.count[kind(line)] += 1
                self.count["bytes sent"] += len(body)
                up_writer.write(head + body)
                await up_writer.drain()
                head, body = await message(up_reader, is_head=line.startswith("HEAD "))
                self.count["bytes received"] += len(body)
                writer.write(head + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def message(reader, is_head=False):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = await reader.readline()
        if not line:
            return b"", b""
        head += line
    fields = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    if is_head or head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")):
        return head, b""
    if fields.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while True:
            line = await reader.readline()
            size = int(line.split(b";")[0], 16)
            body += line + await reader.readexactly(size + 2)
            if size == 0:
                return head, body
    return head, await reader.readexactly(int(fields.get("content-length", 0)))


def kind(line):
    method, target = line.split(" ")[:2]
    query = target.partition("?")[2]
    if "list-type=2" in query or "versions" in query.split("&") or "uploads" in query.split("&"):
        return "LIST" if method == "GET" else "PUT"
    # S3 asks the price of a PUT for PUT, COPY, POST and LIST, that of a GET for the rest; DELETE is free.
    return {"GET": "GET", "HEAD": "GET", "PUT": "PUT", "POST": "PUT", "DELETE": "DELETE"}[method]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_server(folder):
    port = free_port()
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3", "PERSIST_STATE": "0", "S3_PERSIST": "0"}
    settings |= {"STATE_DIR": f"{folder}/state", "S3_DATA_DIR": f"{folder}/data", "DOCKER_HOST": "unix:///nonexistent"}
    log = open(f"{folder}/log", "w")
    server = subprocess.Popen([TEST_VENV / "bin" / "ministack"], env=os.environ | settings, cwd=folder, stdout=log, stderr=log)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, port
        time.sleep(0.1)
    sys.exit("sizing: ministack does not answer")


SLICE = """
import sys, pyarrow.parquet as pq
table = pq.ParquetFile(sys.argv[1]).read_row_group(0).slice(0, 40_000)
for number in range(2):
    pq.write_table(table.slice(number * 20_000, 20_000), f"{sys.argv[2]}/{number}.parquet", compression="zstd", row_group_size=10_000)
print(table.slice(5, 1)["email"][0].as_py().strip().lower())
"""

UPLOAD = """
import sys, boto3
endpoint, folder, objects = sys.argv[1], sys.argv[2], int(sys.argv[3])
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
s3.create_bucket(Bucket=sys.argv[4])
# The first half holds the listed person, the second nobody.
for number in range(objects):
    s3.upload_file(f"{folder}/{0 if number < int(sys.argv[5]) else 1}.parquet", sys.argv[4], f"lake/part-{number:05}.parquet")
"""


def count_requests(binary, objects):
    """Requests and bytes of a scrub, by kind: for an object without a match, for one with, and per run."""
    with tempfile.TemporaryDirectory() as folder:
        source = min((BENCH / "lake" / "sorted").glob("*.parquet"))
        email = subprocess.run([VENV / "bin" / "python", "-c", SLICE, source, folder], check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run([binary, "keygen", f"{folder}/keys"], check=True, stdout=subprocess.DEVNULL)
        pathlib.Path(folder, "list.txt").write_text(f"{email}\n")
        server, port = start_server(folder)
        try:
            counts = {}
            for name, total, matching in (("one", 1, 0), ("none", objects, 0), ("all", objects, objects)):
                upload = [TEST_VENV / "bin" / "python", "-c", UPLOAD, f"http://127.0.0.1:{port}", folder, str(total), name + "-lake", str(matching)]
                subprocess.run(upload, check=True)
                proxy = CountingProxy(port)
                job = pathlib.Path(folder, f"{name}.toml")
                job.write_text(JOB.format(port=proxy.port, bucket=name + "-lake"))
                environment = os.environ | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
                run = subprocess.run([binary, "scrub", job, "--json", "-q"], env=environment, capture_output=True, text=True)
                if run.returncode != 0:
                    sys.exit(f"sizing: scrub ended with {run.returncode}\n{run.stderr[-2000:]}")
                removed = json.loads(run.stdout)["datasets"][0]["objects"]["rewritten"]
                if removed != matching:
                    sys.exit(f"sizing: {removed} objects were rewritten, not {matching}")
                counts[name] = proxy.count
        finally:
            server.kill()
    kinds = ("LIST", "GET", "PUT", "DELETE", "bytes received", "bytes sent")
    per = lambda a, b, of: {kind: max(0.0, (counts[a][kind] - counts[b][kind]) / of) for kind in kinds}
    unmatched = per("none", "one", objects - 1)
    matched = per("all", "none", objects)
    return {"unmatched": unmatched, "matched": matched, "run": {kind: counts["one"][kind] - unmatched[kind] for kind in kinds}}


JOB = """\
version = 1
name = "sizing"
[state]
uri = "state-of-{bucket}/"
[storage.s3]
endpoint = "http://127.0.0.1:{port}"
allow_http = true
[guard]
max_fraction = 1.0
[[list]]
name = "day"
uri = "list.txt"
[[list.column]]
column = "email"
kind = "email"
[[dataset]]
name = "lake"
uri = "s3://{bucket}/lake/"
[[dataset.match]]
column = "email"
kind = "email"
"""

# ---------------------------------------------------------------------------------------------------- the lake, simulated

SIMULATE = """
import json, sys
import numpy as np
objects, total, people, list_size, rows_a_person, seed = (int(word) for word in sys.argv[1:])
random = np.random.default_rng(seed)
sizes = random.lognormal(0.0, 1.0, objects)
sizes *= total / sizes.sum()
# How often each person of the day's list occurs: Zipf-like, as in the benchmark's lake (s = 0.7), drawn from all people.
ranks = random.integers(1, people + 1, list_size).astype(float)
weights = ranks ** -0.7
mean = ((people ** 0.3) / 0.3) / people
rows = random.poisson(rows_a_person * weights / mean)
# A row is in an object with a chance that goes with the object's size.
edges = np.cumsum(sizes) / total
hit = np.searchsorted(edges, random.random(int(rows.sum())))
hit, rows_in = np.unique(np.minimum(hit, objects - 1), return_counts=True)
print(json.dumps({"rows_hit": int(rows.sum()), "objects_hit": len(hit), "bytes_of_hit": float(sizes[hit].sum()),
                  "bytes_median": float(np.median(sizes)), "rows_an_object_hit": float(rows_in.mean()),
                  "row_groups_hit": int(np.minimum(rows_in, np.maximum(1, sizes[hit] // 134217728)).sum())}))
"""


def simulate(args):
    words = [args.objects_in_lake, args.bytes_in_lake, args.people, args.list, args.rows_a_person, 20261125]
    out = subprocess.run([VENV / "bin" / "python", "-c", SIMULATE, *map(str, map(int, words))], check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def cpu_figures():
    """CPU seconds per stored byte of the lake: of looking (plan), of the verifying scan, and of rewriting a byte of a touched row group."""
    path = BENCH / "result.json"
    if not path.exists():
        sys.exit("sizing: run `make bench` first; its .bench/result.json has the figures per byte")
    result = json.loads(path.read_text())
    case, size = result["cases"]["arrival/random_1k"], result["lake"]["size_mb"]["arrival"] * 1e6
    plan, scrub, verify = (case[f"lakescrub {command}"]["cpu_s"] / size for command in ("plan", "scrub", "verify"))
    # Every row group is touched there: what is neither find nor verify is the rewrite and its read-back.
    return {"plan": plan, "verify": verify, "rewrite": max(0.0, scrub - plan - verify)}


# ---------------------------------------------------------------------------------------------------------------- report


def main():
    parser = argparse.ArgumentParser(description="the cost of a daily run on a large lake, from measured figures")
    parser.add_argument("binary", type=pathlib.Path, help="lakescrub, release build")
    parser.add_argument("--objects", type=int, default=40, help="objects in the counted run (default 40)")
    parser.add_argument("--bytes-in-lake", type=float, default=1e15)
    parser.add_argument("--objects-in-lake", type=float, default=1e7)
    parser.add_argument("--people", type=float, default=1e9, help="people in the lake (default 1e9)")
    parser.add_argument("--rows-a-person", type=float, default=4000, help="rows of an average person (default 4000)")
    parser.add_argument("--list", type=float, default=1e4, help="new identifiers a day (default 10000)")
    parser.add_argument("--column-share", type=float, default=0.085, help="share of the bytes that the identifier columns are (default 0.085)")
    parser.add_argument("--put-price", type=float, default=0.005, help="dollars for 1000 PUT, POST or LIST (default 0.005)")
    parser.add_argument("--get-price", type=float, default=0.0004, help="dollars for 1000 GET or HEAD (default 0.0004)")
    parser.add_argument("--vcpu-hour", type=float, default=0.04, help="dollars for one vCPU for an hour (default 0.04)")
    args = parser.parse_args()

    cpu, lake = cpu_figures(), simulate(args)
    requests = count_requests(args.binary.resolve(), args.objects)
    objects, hit = args.objects_in_lake, lake["objects_hit"]
    pages = objects / 1000  # keys in a page of a listing
    lists, gets, puts = pages * 3, requests["unmatched"]["GET"] * objects, 0.0
    gets += requests["matched"]["GET"] * hit
    puts += requests["matched"]["PUT"] * hit
    looked = 2 * args.column_share * args.bytes_in_lake
    rewritten = lake["bytes_of_hit"]
    touched = lake["row_groups_hit"] * min(134217728, args.bytes_in_lake / objects)
    hours = {
        "find and plan": cpu["plan"] * args.bytes_in_lake / 3600,
        "rewrite, read back": cpu["rewrite"] * min(touched, rewritten) / 3600,
        "verify": cpu["verify"] * args.bytes_in_lake / 3600,
    }
    dollars = {
        "GET, HEAD": gets / 1000 * args.get_price,
        "PUT, POST, LIST": (puts + lists) / 1000 * args.put_price,
        "vCPU": sum(hours.values()) * args.vcpu_hour,
    }
    print(json.dumps({"requests": requests, "cpu_seconds_per_byte": cpu, "lake": lake}, indent=2))
    print(f"\n{args.bytes_in_lake:.3g} bytes in {objects:,.0f} objects, {args.list:,.0f} new identifiers of {args.people:.3g} people")
    print(f"rows hit {lake['rows_hit']:,}, objects hit {hit:,} ({hit / objects:.1%}), bytes of those {rewritten / 1e12:.1f} TB")
    print(f"read for finding and verifying: {looked / 1e12:.0f} TB of identifier columns")
    print(f"requests: {gets / 1e6:.1f} M GET or HEAD, {puts / 1e6:.2f} M PUT or POST, {lists / 1e3:.0f} k LIST")
    for name, value in hours.items():
        print(f"{name:<20} {value:10,.0f} vCPU hours")
    for name, value in dollars.items():
        print(f"{name:<20} {value:10,.2f} dollars")
    print(f"{'all':<20} {sum(dollars.values()):10,.2f} dollars a day")


if __name__ == "__main__":
    main()
