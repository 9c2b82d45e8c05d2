#!/usr/bin/env python3
"""Makes the benchmark's lake and suppression lists; run.py calls it once, in its own virtual environment.

Below --out:
    arrival/part-N.parquet   rows in order of time: everybody is everywhere
    sorted/part-N.parquet    as many rows of the same people, sorted by user: a person lies in one row group, or two
    csv/part-0.csv           the first rows of the arrival order, without the list column
    lists/NAME.txt           one address a line, shuffled
    lists/NAME_sha256.txt    SHA-256 of the same addresses, in hex
    lists/million.txt        people who are not in the lake, for the start of the gate
    lake.json                what was made; run.py makes the lake again when these settings change

Events are 20 columns wide. Users are Zipf-distributed (s = 0.7), one user to four rows. Even files are zstd 3, odd ones snappy; sixteen
files of five row groups. Three addresses in a hundred are spelled in upper case or with spaces around them, so that a peer that compares bytes
finds fewer rows than the rest.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

FILES, GROUPS_PER_FILE = 16, 5
ROWS_PER_USER = 4
ZIPF = 0.7
SEED = 20261124

FIRST = "ada bob cem dora ed fay gus hana ian joy kim lea max nia omar pia rex sue tom una".split()
LAST = "adler brandt costa dumont ekberg ferrari grau hansen ito jung kovac lindt moreau nunez olsen".split()
DOMAINS = [f"mail{i}.example.{top}" for i in range(5) for top in ("com", "org", "net")]
HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


def mix(ids, salt):
    """A well spread 64-bit number for each id: the finaliser of MurmurHash3 over id times an odd constant."""
    x = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    for constant in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x ^= x >> np.uint64(33)
        x *= np.uint64(constant)
    return x ^ (x >> np.uint64(33))


def pick(values, numbers):
    return pa.array(values).take(pa.array((numbers % np.uint64(len(values))).astype(np.int32)))


def text_of(matrix):
    """The rows of a matrix of ASCII codes as strings."""
    rows, width = matrix.shape
    offsets = (np.arange(rows + 1) * width).astype(np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(matrix)))


def digits(numbers, width):
    powers = 10 ** np.arange(width - 1, -1, -1, dtype=np.int64)
    return text_of((numbers.astype(np.int64)[:, None] // powers % 10 + 48).astype(np.uint8))


def uuids(high, low):
    octets = np.stack([high, low], axis=1).view(np.uint8)
    out = np.full((len(high), 36), ord("-"), np.uint8)
    places = [i for i in range(36) if i not in (8, 13, 18, 23)]
    out[:, places[0::2]] = HEX[octets >> 4]
    out[:, places[1::2]] = HEX[octets & 15]
    return text_of(out)


def emails(ids):
    h = mix(ids, 1)
    local = pc.binary_join_element_wise(pick(FIRST, h), pick(LAST, h >> np.uint64(16)), ".")
    local = pc.binary_join_element_wise(local, pc.cast(pa.array(ids.astype(np.int64)), pa.string()), "")
    return pc.binary_join_element_wise(local, pick(DOMAINS, h >> np.uint64(32)), "@")


def as_typed(addresses, rng):
    """Some addresses in other spellings of the same canonical form."""
    dice = rng.random(len(addresses))
    shouted = pc.if_else(pa.array(dice < 0.02), pc.utf8_upper(addresses), addresses)
    return pc.if_else(pa.array(dice > 0.99), pc.binary_join_element_wise(" ", shouted, " ", ""), shouted)


def agents():
    rng = np.random.default_rng(1)
    systems = ["Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 14_2", "X11; Linux x86_64", "iPhone; CPU iPhone OS 18_1", "Linux; Android 15"]
    return [f"Mozilla/5.0 ({system}) AppleWebKit/{rng.integers(500, 620)}.{rng.integers(40)} (KHTML, like Gecko) Chrome/{rng.integers(90, 140)}.0.{rng.integers(9000)}.{rng.integers(200)} Safari/537.36"
            for system in systems for _ in range(300)]


AGENTS = agents()
PAGES = [f"https://shop{i % 30}.example.com/{part}/{i * 37 % 9973}" for i in range(8000) for part in ("shoes", "books", "toys", "phones")]
CITIES = [f"city-{i}" for i in range(2500)]
TAGS = ["new", "vip", "promo", "mobile", "web", "returning", "beta", "trial", "cart", "search", "email", "push"]
COUNTRIES = "US DE FR GB BR IN JP ES IT NL PL SE MX CA AU KR".split()
TYPES = ["page_view", "click", "add_to_cart", "purchase", "impression", "login"]


def skewed(values, rng, rows):
    return pa.array(values).take(pa.array((rng.random(rows) ** 2 * len(values)).astype(np.int32)))


def events(ids, first_us, span_us, seed):
    """A table of one event for each user id, in order of time from `first_us` on."""
    rng = np.random.default_rng(seed)
    rows = len(ids)
    tag_ends = np.concatenate([[0], np.cumsum(rng.integers(0, 4, rows))]).astype(np.int32)
    tags = pa.array(TAGS).take(pa.array(rng.integers(0, len(TAGS), tag_ends[-1])))
    url = pc.binary_join_element_wise(skewed(PAGES, rng, rows), digits(rng.integers(0, 10**8, rows), 8), "?s=")
    geo = [pa.array(np.round(rng.normal(45, 8, rows), 4)), pa.array(np.round(rng.normal(8, 40, rows), 4)), skewed(CITIES, rng, rows)]
    return pa.table({
        "event_id": uuids(rng.integers(0, 2**63, rows), rng.integers(0, 2**63, rows)),
        "ts": pa.array(first_us + np.sort(rng.integers(0, span_us, rows)), pa.timestamp("us", "UTC")),
        "user_id": pa.array(ids.astype(np.int64)),
        "email": as_typed(emails(ids), rng),
        "phone": pc.binary_join_element_wise("+1", digits(mix(ids, 2) % np.uint64(8 * 10**9) + np.uint64(2 * 10**9), 10), ""),
        "device_id": uuids(mix(ids, 3), mix(ids, 4)),
        "event_type": skewed(TYPES, rng, rows),
        "url": url,
        "user_agent": skewed(AGENTS, rng, rows),
        "country": skewed(COUNTRIES, rng, rows),
        "session_id": pa.array(rng.integers(0, 2**62, rows)),
        "amount": pa.array(np.round(rng.gamma(2.0, 20.0, rows), 2), mask=rng.random(rows) < 0.15),
        "duration_ms": pa.array(rng.gamma(1.5, 800, rows).astype(np.int32)),
        "score": pa.array(rng.random(rows)),
        "price": pa.array(np.round(rng.lognormal(3, 1, rows), 2)),
        "qty": pa.array(rng.integers(1, 10, rows).astype(np.int32)),
        "is_bot": pa.array(rng.random(rows) < 0.03),
        "campaign": skewed([f"cmp-{i:04}" for i in range(500)], rng, rows),
        "tags": pa.ListArray.from_arrays(pa.array(tag_ends), tags),
        "geo": pa.StructArray.from_arrays(geo, ["lat", "lon", "city"]),
    })


def write_file(path, ids, number, seed):
    day_us = 86_400_000_000
    codec = {"compression": "zstd", "compression_level": 3} if number % 2 == 0 else {"compression": "snappy"}
    group_rows = len(ids) // GROUPS_PER_FILE
    out = None
    for group in range(GROUPS_PER_FILE):
        first_us = 1_793_000_000_000_000 + number * day_us + group * (day_us // GROUPS_PER_FILE)
        table = events(ids[group * group_rows:(group + 1) * group_rows], first_us, day_us // GROUPS_PER_FILE, [*seed, number, group])
        out = out or pq.ParquetWriter(path, table.schema, write_page_index=True, **codec)
        out.write_table(table, row_group_size=group_rows)
    out.close()


def zipf_users(rows, users):
    """A user id for each row, by inverting the continuous Zipf distribution; how active a user is has nothing to do with the id."""
    rng = np.random.default_rng(SEED)
    rank = ((users ** (1 - ZIPF) - 1) * rng.random(rows) + 1) ** (1 / (1 - ZIPF))
    return rng.permutation(users)[np.clip(rank.astype(np.int64) - 1, 0, users - 1)] + 1


def of_row_groups(in_order, groups, people):
    """People of the sorted lake all of whose rows lie in these of its row groups."""
    chosen = []
    for group in in_order.reshape(FILES * GROUPS_PER_FILE, -1)[groups]:
        inside = np.unique(group)[1:-1]  # the first and last one may reach into the neighbours
        chosen.append(np.random.default_rng([SEED, len(chosen)]).choice(inside, min(people // len(groups), len(inside)), replace=False))
    return np.concatenate(chosen)


def write_lists(folder, arrival, in_order, users):
    rng = np.random.default_rng(SEED + 1)
    thousand = min(1000, users // 10)
    large = users // 10
    newest = users - max(users // 100, thousand)
    lists = {
        "random_1k": rng.choice(users, thousand, replace=False) + 1,
        "clustered_1k": newest + rng.choice(users - newest, thousand, replace=False) + 1,
        # A tenth of them are in the lake.
        "large": np.concatenate([rng.choice(users, large // 10, replace=False) + 1, np.arange(users + 1, users + 1 + large - large // 10)]),
        "one_group_of_five": of_row_groups(in_order, range(2, FILES * GROUPS_PER_FILE, GROUPS_PER_FILE), thousand),
        "one_group": of_row_groups(in_order, [FILES * GROUPS_PER_FILE - 3], thousand),
        "spread_20": rng.choice(users, 20, replace=False) + 1,
        # A twentieth of them are in the lake.
        "five_million": np.concatenate([rng.choice(users, min(250_000, users // 4), replace=False) + 1, np.arange(users + 1, users + 4_750_001)]),
        # As many people in every row group as "one_group_of_five" has in each that it touches.
        "all_groups": of_row_groups(in_order, range(FILES * GROUPS_PER_FILE), GROUPS_PER_FILE * thousand),
    }
    counts = np.bincount(arrival, minlength=max(int(ids.max()) for ids in lists.values()) + 1)
    made = {}
    for name, ids in lists.items():
        rng.shuffle(ids)
        addresses = emails(ids).to_pylist()
        (folder / f"{name}.txt").write_text("\n".join(addresses) + "\n")
        made[name] = {"identifiers": len(ids), "rows_matched": int(counts[ids].sum())}
        if name == "five_million":
            hashes = (hashlib.sha256(address.encode()).hexdigest() for address in addresses)
            (folder / f"{name}_sha256.txt").write_text("\n".join(hashes) + "\n")
            made[f"{name}_sha256"] = made[name]
    (folder / "million.txt").write_text("\n".join(emails(np.arange(users + 1, users + 1_000_001)).to_pylist()) + "\n")
    return made


def write_csv(source, target):
    table = pq.ParquetFile(source)
    table = pa.concat_tables([table.read_row_group(i) for i in range(table.num_row_groups)])
    table = table.drop_columns(["tags"]).flatten()
    pa.csv.write_csv(table, target)


def main():
    parser = argparse.ArgumentParser(description="makes the benchmark's lake and lists")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows in each order")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()

    rows = args.rows // (FILES * GROUPS_PER_FILE) * FILES * GROUPS_PER_FILE
    users = rows // ROWS_PER_USER
    shutil.rmtree(args.out, ignore_errors=True)
    for name in ("arrival", "sorted", "csv", "lists"):
        (args.out / name).mkdir(parents=True)
    arrival = zipf_users(rows, users)
    in_order = np.sort(arrival)
    lists = write_lists(args.out / "lists", arrival, in_order, users)
    with ProcessPoolExecutor(args.jobs) as pool:
        files = [
            pool.submit(write_file, args.out / order / f"part-{i}.parquet", ids, i, [SEED, salt])
            for salt, (order, whole) in enumerate({"arrival": arrival, "sorted": in_order}.items())
            for i, ids in enumerate(np.split(whole, FILES))
        ]
        for file in files:
            file.result()
    write_csv(args.out / "arrival" / "part-0.parquet", args.out / "csv" / "part-0.csv")
    made = {"rows_asked": args.rows, "rows": rows, "users": users, "files": FILES, "row_groups_per_file": GROUPS_PER_FILE, "lists": lists}
    (args.out / "lake.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
