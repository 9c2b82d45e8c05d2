#!/usr/bin/env python3
"""Makes the sample lake, its suppression lists and expected.json; every person, address and number in them is invented.

    python3 -m venv VENV && VENV/bin/pip install pyarrow==26.0.1 duckdb==2.0.0 && VENV/bin/python sample_data/make.py

Same versions, same bytes: all randomness is seeded and no clock is read. The expected counts are not taken from what was
planted but counted again from the written files, with the rules of DROP (see `canonical_*`) written out here a second time.
"""

import base64
import csv
import datetime as dt
import decimal
import gzip
import hashlib
import io
import json
import pathlib
import random
import shutil

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).resolve().parent
LISTS = HERE / "lists"
LAKE = HERE / "lake"
RNG = random.Random(20261101)

FIRST = "Anna Ben Carla David Elif Farid Greta Hugo Ines Jonas Keiko Liam Maya Nils Olga Pedro Quinn Rosa Sven Tara".split()
LAST = "Berg Castro Diaz Ebert Fischer Garcia Hahn Ivanova Jensen Kaya Lopez Meyer Novak Okafor Patel".split()
DOMAINS = ["example.com", "example.org", "example.net"]
AREAS = [201, 206, 212, 213, 305, 312, 404, 415, 503, 512, 602, 617, 702, 713, 808, 917]
CITIES = [("US", "Portland"), ("US", "Austin"), ("DE", "Leipzig"), ("FR", "Nantes"), ("ES", "Vigo"), ("GB", "Leeds"), ("NL", "Utrecht")]
EVENT_TYPES = ["page_view", "page_view", "page_view", "click", "add_to_cart", "purchase", "login"]
TAGS = ["mobile", "web", "vip", "beta", "sale", "newsletter", "returning"]

# ---------------------------------------------------------------------------------------------------------------- people


class Person:
    """Someone with one e-mail address, one phone number (of the range kept for fiction, 555-0100 to 555-0199) and one device."""

    count = 0

    def __init__(self, email=None, name=None):
        i = Person.count
        Person.count += 1
        first, last = FIRST[i % len(FIRST)], LAST[(i // len(FIRST) + i) % len(LAST)]
        self.name = name or f"{first} {last}"
        self.email = email or f"{first}.{last}{i if i >= 300 else ''}@{DOMAINS[i % 3]}".lower()
        self.phone = f"{AREAS[i % len(AREAS)]}5550{100 + i // len(AREAS)}"
        self.maid = "".join(RNG.choice("0123456789abcdef") for _ in range(32))


def uuid_text(digits):
    return "-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])


def spell_email(email):
    """The same address as people and programs type it: case, white space around it, or plain."""
    local, domain = email.split("@")
    return RNG.choice([email, email, f"{local.title()}@{domain}", email.upper(), f" {email}", f"{local}@{domain.title()} ", f"\t{email}"])


def spell_phone(digits):
    a, b, c = digits[:3], digits[3:6], digits[6:]
    return RNG.choice([f"+1 {a} {b} {c}", f"({a}) {b}-{c}", f"{a}-{b}-{c}", digits, f"1.{a}.{b}.{c}", f"+1{digits}"])


def spell_maid(digits):
    return RNG.choice([uuid_text(digits), uuid_text(digits).upper()])


def look_alikes(person):
    """People who are somebody else, though an inexact comparison would take them for `person`."""
    local, domain = person.email.split("@")
    other = next(d for d in DOMAINS if d != domain)
    emails = [f"{local}@{other}", f"{local}+shop@{domain}", f"x{local}@{domain}", f"{local}@{domain}.example.org", f"{local.replace('.', '_')}@{domain}"]
    people = [Person(email, person.name) for email in emails]
    people[0].maid = person.maid[:-1] + ("0" if person.maid[-1] != "0" else "1")
    people[1].phone = person.phone[:-1] + ("0" if person.phone[-1] != "0" else "9")
    return people


LISTED = [Person() for _ in range(15)] + [Person("jürgen.müller@example.org", "Jürgen Müller")]  # in lists and in the lake
CRM, PORTAL, BROKER = LISTED[0:6] + LISTED[15:], LISTED[5:11], LISTED[11:15]  # LISTED[5] is in two lists
CUSTOMERS = [Person() for _ in range(180)] + [twin for person in LISTED[:6] for twin in look_alikes(person)]
STRANGERS = [Person() for _ in range(330)]  # in lists, never in the lake

# ----------------------------------------------------------------------------------------------------------------- lists


def write_lists():
    LISTS.mkdir(parents=True)
    start = dt.datetime(2026, 10, 5, 8, 0, tzinfo=dt.timezone.utc)

    people = CRM + STRANGERS[:60] + [CRM[1], STRANGERS[3]]  # two asked twice
    order = RNG.sample(range(len(people)), len(people))
    with open(LISTS / "crm_optouts.csv", "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(["id", "requested_at", "email", "phone"])
        for i, person in enumerate(people[k] for k in order):
            asked = (start + dt.timedelta(minutes=97 * i)).strftime("%Y-%m-%dT%H:%M:%SZ")
            phone = "" if person not in LISTED and RNG.random() < 0.2 else spell_phone(person.phone)
            if person is CRM[2]:
                phone += "\n(work, after six)"
            out.writerow([f"CRM-{i + 1:04}", asked, spell_email(person.email), phone])

    people = PORTAL + STRANGERS[60:100]
    with open(LISTS / "privacy_portal.ndjson", "w", encoding="utf-8") as f:
        for i, person in enumerate(RNG.sample(people, len(people))):
            # Some people gave their device only: of the first two, nothing but rows with that device can be found.
            email = None if person in PORTAL[1:3] else spell_email(person.email)
            maid = spell_maid(person.maid) if person in PORTAL or RNG.random() < 0.6 else None
            f.write(json.dumps({"id": f"PP-{i + 1:04}", "email": email, "maid": maid}, ensure_ascii=False) + "\n")

    people = BROKER + STRANGERS[90:330]
    rows = [(sha256_base64(canonical_email(p.email)), f"DROP-{i + 1:05}") for i, p in enumerate(RNG.sample(people, len(people)))]
    table = pa.table({"Hash": [h for h, _ in rows], "ID": [i for _, i in rows]})
    pq.write_table(table, LISTS / "broker_hashes.parquet", compression="zstd", use_dictionary=False)


# ---------------------------------------------------------------------------------------------------------------- events


def field(name, kind, number, **more):
    meta = {"PARQUET:field_id": str(number)} | more
    return pa.field(name, kind, metadata=meta)


EVENTS = pa.schema(
    [
        field("event_id", pa.uuid(), 1),
        field("ts", pa.timestamp("us", "UTC"), 2),
        field("event_type", pa.dictionary(pa.int32(), pa.string()), 3),
        field("device_id", pa.string(), 4, pii="device"),
        field("user", pa.struct([field("email", pa.string(), 6, pii="contact"), field("phone", pa.string(), 7, pii="contact")]), 5),
        field("tags", pa.list_(field("element", pa.string(), 9)), 8),
        field("geo", pa.struct([field("country", pa.string(), 11), field("city", pa.string(), 12)]), 10),
        field("amount", pa.decimal128(10, 2), 13, comment="US dollars, purchases only"),
        field("duration_ms", pa.int32(), 14),
        field("url", pa.string(), 15),
        field("is_bot", pa.bool_(), 16),
    ],
    metadata={"lake.producer": "clickstream 4.2", "lake.owner": "growth@example.com"},
)


def event(person, ts, listed):
    """One row. A listed person's row always holds at least one identifier that a list knows."""
    email, phone, maid = person.email, person.phone, person.maid
    if listed and person in CRM:
        shown = RNG.choice(["both", "both", "email", "phone"])
    elif listed and person in PORTAL:
        shown = RNG.choice(["both", "nobody"])  # found by device either way
    elif listed:
        shown = RNG.choice(["both", "email"])
    else:
        shown = RNG.choice(["both"] * 6 + ["email", "phone", "nobody", "blank"])
    if listed and person in CRM and RNG.random() < 0.5:
        maid = "".join(RNG.choice("0123456789abcdef") for _ in range(32))  # a device nobody listed
    user = {
        "both": {"email": spell_email(email), "phone": spell_phone(phone)},
        "email": {"email": spell_email(email), "phone": None},
        "phone": {"email": None, "phone": spell_phone(phone)},
        "nobody": None,
        "blank": {"email": "", "phone": None},
    }[shown]
    kind = RNG.choice(EVENT_TYPES)
    country, city = RNG.choice(CITIES)
    return {
        "event_id": RNG.randbytes(16),
        "ts": ts,
        "event_type": kind,
        "device_id": None if not listed and RNG.random() < 0.1 else uuid_text(maid).upper() if int(maid[0], 16) % 2 else uuid_text(maid),
        "user": user,
        "tags": RNG.choice([None, []] + [RNG.sample(TAGS, n) for n in (1, 2, 3)]),
        "geo": {"country": country, "city": city},
        "amount": decimal.Decimal(RNG.randrange(99, 20000)).scaleb(-2) if kind == "purchase" else None,
        "duration_ms": RNG.randrange(20, 9000),
        "url": f"https://shop.example.com/{RNG.choice(['shoes', 'books', 'toys'])}/{RNG.randrange(1, 60)}",
        "is_bot": RNG.random() < 0.03,
    }


def day_of_events(day, rows, rows_per_group, planted):
    """`planted`: for each row group, how many rows of listed people it holds, spread evenly over it."""
    start = dt.datetime(2026, 11, day, tzinfo=dt.timezone.utc)
    out = []
    for i in range(rows):
        group, within = divmod(i, rows_per_group)
        size = min(rows_per_group, rows - group * rows_per_group)
        step = size // planted[group] if planted[group] else 0
        listed = bool(step) and within % step == step // 2 and within // step < planted[group]
        # Squared: a few people make most of the rows.
        person = RNG.choice(LISTED) if listed else CUSTOMERS[int(RNG.random() ** 2 * len(CUSTOMERS))]
        out.append(event(person, start + dt.timedelta(seconds=86_400 * i / rows), listed))
    return pa.Table.from_pylist(out, schema=EVENTS)


def write_parquet(name, table, rows_per_group, **options):
    path = LAKE / "events" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # Small pages, so that these small files have several of them, as large files do.
    options = {"write_page_index": True, "data_page_size": 2048, "write_batch_size": 64} | options
    with pq.ParquetWriter(path, table.schema, **options) as out:
        out.write_table(table, row_group_size=rows_per_group)


def write_events():
    bloom = {column: {"ndv": 250, "fpp": 0.01} for column in ("user.email", "device_id")}
    by_time = [pq.SortingColumn(1)]
    write_parquet("day=2026-11-01/part-0.parquet", day_of_events(1, 900, 300, [12, 15, 9]), 300,
                  compression="zstd", bloom_filter_options=bloom, sorting_columns=by_time)
    write_parquet("day=2026-11-02/part-0.parquet", day_of_events(2, 900, 300, [0, 14, 0]), 300,
                  compression="snappy", use_dictionary=["event_type"], write_page_checksum=True)
    write_parquet("day=2026-11-03/part-0.parquet", day_of_events(3, 500, 250, [0, 0]), 250,
                  compression="zstd", bloom_filter_options=bloom)
    write_with_duckdb("day=2026-11-04/data_0.parquet", day_of_events(4, 2600, 2048, [16, 0]), 2048)
    write_parquet("day=2026-11-05/part-0.parquet", day_of_events(5, 500, 250, [0, 0]), 250,
                  compression="snappy", write_page_index=False)
    write_parquet("day=2026-11-06/part-0.snappy.parquet", day_of_events(6, 600, 200, [0, 0, 7]), 200,
                  compression="snappy", data_page_version="2.0")
    # A late delivery of which no row may stay.
    write_parquet("day=2026-11-06/late-0.parquet", day_of_events(6, 3, 3, [3]), 3, compression="zstd")


def write_with_duckdb(name, table, rows_per_group):
    """DuckDB's writer: no Arrow schema in the footer, other encodings, bloom filters for dictionary columns by its own rule."""
    path = LAKE / "events" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = table.set_column(2, "event_type", table["event_type"].cast(pa.string()))
    db = duckdb.connect(config={"threads": 1})
    db.execute("set timezone = 'UTC'")
    db.register("plain", plain)
    db.execute(f"copy (select * from plain) to '{path}' (format parquet, compression zstd, row_group_size {rows_per_group})")


# ------------------------------------------------------------------------------------------------------------- customers

COLUMNS = ["customer_id", "name", "email", "phone", "address", "note"]
NOTES = ["", "", "", "prefers e-mail", 'said "call me back", twice', "gate code 12,\nring twice", "VIP; do not discount", "line one\n\nline three, \"quoted\""]


def customer(i, person):
    street = f"{RNG.randrange(1, 400)} {RNG.choice(['Oak', 'Mill', 'Station', 'Harbour'])} St"
    address = RNG.choice([street, f"{street}, Apt {RNG.randrange(1, 40)}", f"{street}\nRear building"])
    phone = "" if person not in LISTED and RNG.random() < 0.1 else spell_phone(person.phone)
    return [f"C{i:05}", person.name, spell_email(person.email), phone, address, RNG.choice(NOTES)]


def csv_bytes(people, first_id, newline, quoting, bom=b""):
    text = io.StringIO(newline="")
    out = csv.writer(text, lineterminator=newline, quoting=quoting)
    out.writerow(COLUMNS)
    for i, person in enumerate(people):
        row = customer(first_id + i, person)
        # Inside quotes a Windows program breaks lines its own way, too.
        out.writerow([cell.replace("\n", newline) for cell in row])
    return bom + text.getvalue().encode()


def mixed(customers, listed):
    people = customers + listed
    return RNG.sample(people, len(people))


def write_customers():
    folder = LAKE / "customers"
    folder.mkdir(parents=True)
    (folder / "customers_us.csv").write_bytes(csv_bytes(mixed(CUSTOMERS[0:70], LISTED[0:6]), 1, "\n", csv.QUOTE_MINIMAL))
    eu = csv_bytes(mixed(CUSTOMERS[70:140], LISTED[6:9] + LISTED[15:]), 1001, "\r\n", csv.QUOTE_ALL, bom=b"\xef\xbb\xbf")
    (folder / "customers_eu.csv").write_bytes(eu)
    (folder / "customers_new.csv").write_bytes(csv_bytes(CUSTOMERS[140:160], 2001, "\n", csv.QUOTE_MINIMAL))
    old = csv_bytes(mixed(CUSTOMERS[160:] + CUSTOMERS[:20], LISTED[9:15] + LISTED[0:2]), 9001, "\n", csv.QUOTE_MINIMAL)
    (folder / "archive_2024.csv.gz").write_bytes(gzip.compress(old, 9, mtime=0))


# ---------------------------------------------------------------------------------------------------------------- expect


def canonical_email(raw):
    return "".join(raw.split()).lower()


def canonical_phone(raw):
    return "".join(c for c in raw if c in "0123456789")[-10:]


def canonical_maid(raw):
    return "".join(c for c in raw.lower() if c in "0123456789abcdef")


def sha256_base64(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read_lists():
    """What the three lists ask for, by kind, and what expected.json says about each list."""
    with open(LISTS / "crm_optouts.csv", newline="", encoding="utf-8") as f:
        crm = list(csv.DictReader(f))
    portal = [json.loads(line) for line in open(LISTS / "privacy_portal.ndjson", encoding="utf-8")]
    broker = pq.read_table(LISTS / "broker_hashes.parquet").to_pylist()
    emails = {"crm": {canonical_email(r["email"]) for r in crm}, "portal": {canonical_email(r["email"]) for r in portal if r["email"]}}
    wanted = {
        "email": emails["crm"] | emails["portal"],
        "phone": {canonical_phone(r["phone"]) for r in crm if r["phone"]},
        "maid": {canonical_maid(r["maid"]) for r in portal if r["maid"]},
        "email_sha256": {r["Hash"] for r in broker},
    }
    summary = {
        "crm": {"rows": len(crm), "identifiers": {"email": len(emails["crm"]), "phone": len(wanted["phone"])}},
        "portal": {"rows": len(portal), "identifiers": {"email": len(emails["portal"]), "maid": len(wanted["maid"])}},
        "broker": {"rows": len(broker), "identifiers": {"email": len(wanted["email_sha256"])}},
    }
    return wanted, summary


def is_listed(wanted, email, phone, maid):
    email = canonical_email(email or "")
    return bool(
        (email and (email in wanted["email"] or sha256_base64(email) in wanted["email_sha256"]))
        or (phone and canonical_phone(phone) in wanted["phone"])
        or (maid and canonical_maid(maid) in wanted["maid"])
    )


def expect_events(wanted):
    objects = {}
    for path in sorted((LAKE / "events").rglob("*.parquet")):
        file = pq.ParquetFile(path)
        groups = []
        for i in range(file.num_row_groups):
            rows = file.read_row_group(i).to_pylist()
            groups.append([is_listed(wanted, (r["user"] or {}).get("email"), (r["user"] or {}).get("phone"), r["device_id"]) for r in rows])
        objects[str(path.relative_to(LAKE / "events"))] = {
            "rows": sum(map(len, groups)),
            "matched": sum(map(sum, groups)),
            "row_groups": len(groups),
            "row_groups_matched": sum(map(any, groups)),
        }
    return objects


def expect_customers(wanted):
    objects = {}
    for path in sorted((LAKE / "customers").iterdir()):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        hits = [is_listed(wanted, r["email"], r["phone"], None) for r in rows]
        objects[path.name] = {"rows": len(rows), "matched": sum(hits)}
    return objects


def total(objects):
    before, matched = (sum(o[key] for o in objects.values()) for key in ("rows", "matched"))
    return {
        "objects": {"listed": len(objects), "matched": sum(o["matched"] > 0 for o in objects.values())},
        "rows": {"before": before, "matched": matched, "after": before - matched},
        "by_object": objects,
    }


def main():
    for folder in (LISTS, LAKE):
        shutil.rmtree(folder, ignore_errors=True)
    write_lists()
    write_events()
    write_customers()
    wanted, lists = read_lists()
    expected = {"lists": lists, "datasets": {"events": total(expect_events(wanted)), "customers": total(expect_customers(wanted))}}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    for name, dataset in expected["datasets"].items():
        print(name, dataset["objects"], dataset["rows"])
        for path, counts in dataset["by_object"].items():
            print("  ", path, counts)
    print("lists", lists)


if __name__ == "__main__":
    main()
