# SPDX-License-Identifier: MIT
# Goal: whatever happens to targets and their pages, every page is what a plain dictionary says, and
#   every reference, object and byte held is accounted for.
# Method: hypothesis drives page maps, descriptors, standby and segments (native/tests/model.c,
#   under ASan and UBSan where the compiler has them) beside a dictionary, compared at every step.
"""A state machine over the virtual swap space, against a dictionary.

The model knows, for every page of every target, what the program would read there and where the
page is said to be. A new operation is one request in ``native/tests/model.c``, one method of
``Driver`` and one rule here; what must hold after it is already checked by ``agrees``.
"""

import enum
import functools
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = (
    *("base", "space", "codec", "filter", "hash_avx2", "vswap", "segment", "vacancy", "pagemap"),
    *("compact", "dense", "dictionary", "pack", "standby", "equal", "disk", "aio", "seal", "tag"),
    *("tier", "mover", "landing", "opener", "move", "placement", "priority", "deadslot"),
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
EXIT_SECONDS = 60.0

PAGE = 4096
IDS = 16384
SEGMENTS = 16
NODES = 2048
TARGETS_MAX = 6
TIERS = 2

# Ranges of addresses: over the edge of a leaf, over the edge of the whole tree's halves, and low.
AREA_PAGES = 24
AREAS = (0x20_0000 - 8 * PAGE, 0x7F12_3460_0000, 0x80_0000_0000 - 12 * PAGE, 0x1000)

TINY, TEXT, RANDOM = 2, 3, 4  # kinds of ballast
TROUBLES = {"none": 0, "writes fail": 1, "reads fail": 2, "short transfers": 3}


class NoRoomError(Exception):
    """The driver refused because IDs, segments or nodes have run out."""


class State(enum.IntEnum):
    """States of a page as ``enum usw_page_state`` numbers them; EVICTING is never seen at rest."""

    NONE = 0
    RESIDENT = 1
    EVICTED = 3
    POISONED = 4


MEMORY, OBJECT = 3, 4  # enum usw_backend


@dataclass(frozen=True, slots=True)
class Page:
    """What the model knows of one page."""

    content: bytes
    state: State = State.RESIDENT
    kept: bytes | None = None  # a copy is kept of this content, which the page had when it came in


@dataclass(frozen=True, slots=True)
class Stored:
    """What a dump says of one ID."""

    count: int
    backend: int
    content: bytes | None  # None: what is stored is not what went in, and that was noticed


@dataclass(frozen=True, slots=True)
class Dump:
    """Every word of every page map, and every ID they refer to."""

    words: dict[tuple[int, int], tuple[int, int]]  # (target, address) -> (state, ID)
    ids: dict[int, Stored]


class Driver:
    """The process that holds the real data structures."""

    def __init__(self, program: Path) -> None:
        environment = {
            **os.environ,
            "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        self._process = subprocess.Popen(
            [str(program), str(IDS), str(SEGMENTS), str(NODES), str(program.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests = self._process.stdin
        self._answers = self._process.stdout

    def ask(self, *request: str | int, pages: bytes = b"") -> str:
        """Send a request and return what follows ``ok`` in the answer."""
        try:
            self._requests.write(" ".join(map(str, request)).encode() + b"\n" + pages)
            self._requests.flush()
        except BrokenPipeError:
            self._died()
        verdict, _, rest = self.line().partition(" ")
        if verdict == "no":
            raise NoRoomError(rest)
        assert verdict == "ok", verdict
        return rest

    def line(self) -> str:
        """Read one line of an answer."""
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            self._died()
        return line.decode().rstrip("\n")

    def page(self) -> bytes:
        """Read one page of an answer."""
        page = self._answers.read(PAGE)
        if len(page) != PAGE:
            self._died()
        return page

    def dump(self) -> Dump:
        """Read everything the page maps and descriptors say."""
        words = {}
        for _ in range(int(self.ask("dump"))):
            target, address, state, identifier = map(int, self.line().split())
            words[target, address] = (state, identifier)
        ids = {}
        for _ in range(int(self.line())):
            identifier_, count, backend, verdict = self.line().split()
            content = self.page() if verdict == "right" else None
            ids[int(identifier_)] = Stored(int(count), int(backend), content)
        return Dump(words, ids)

    def check(self) -> dict[str, int]:
        """Have the inner invariants checked; return the figures that come with it."""
        return {key: int(value) for key, value in (p.split("=") for p in self.ask("check").split())}

    def close(self) -> None:
        """Drop everything; the driver fails if anything is left."""
        _, errors = self._process.communicate(timeout=EXIT_SECONDS)
        assert self._process.returncode == 0, errors.decode()

    def kill(self) -> None:
        """End the process whatever its state."""
        self._process.kill()
        self._process.communicate(timeout=EXIT_SECONDS)

    def _died(self) -> None:
        _, errors = self._process.communicate(timeout=EXIT_SECONDS)
        pytest.fail(f"the driver ended with {self._process.returncode}:\n{errors.decode()}")


@functools.cache
def content_of(kind: str, seed: int) -> bytes:
    """Return a page: zeros, one repeated word, text that compresses, or noise."""
    if kind == "zero":
        return bytes(PAGE)
    if kind == "same":
        return (0x0101_0101_0101_0101 * (seed + 1)).to_bytes(8, "little") * (PAGE // 8)
    noise = random.Random(seed).randbytes(PAGE)
    if kind == "text":
        return b"".join(noise[i : i + 4] + b" some text" for i in range(0, PAGE, 8))[:PAGE]
    return noise


def letter_of(page: Page) -> str:
    """Return what the driver must say when it evicts this page and has room."""
    if page.kept == page.content:
        return "c"
    if page.content == page.content[:8] * (PAGE // 8):
        return "s" if any(page.content) else "z"
    return "m"


CONTENTS = st.builds(
    content_of, st.sampled_from(["zero", "same", "text", "random"]), st.integers(0, 5)
)
ADDRESSES = st.builds(
    lambda area, index: area + index * PAGE, st.sampled_from(AREAS), st.integers(0, AREA_PAGES - 1)
)
LENGTHS = st.integers(1, AREA_PAGES).map(lambda pages: pages * PAGE)
PICKS = st.integers(0, 1 << 16)


class SpaceModel(RuleBasedStateMachine):
    """Targets as dictionaries of pages, beside the real thing."""

    program: ClassVar[Path]

    @initialize()
    def start(self) -> None:
        self.driver = Driver(self.program)
        self.targets: dict[int, dict[int, Page]] = {}
        self.damaged: set[int] = set()  # IDs whose stored content a rule has changed
        self.noted: dict[bytes, int] = {}  # the ID a content was last stored under
        self.ballast = 0
        self.tiers: set[int] = set()
        self.on_disks = 0  # segments, when something last moved
        self.trouble = "none"
        self.seen = Dump({}, {})
        self.figures = self.driver.check()
        self.add_target()

    # --- Choosing

    def some_target(self, pick: int) -> int:
        return sorted(self.targets)[pick % len(self.targets)]

    def some_page(self, pick: int, *states: State) -> tuple[int, int] | None:
        """Choose one page in one of these states, of any target."""
        found = [
            (target, address)
            for target, pages in sorted(self.targets.items())
            for address, page in sorted(pages.items())
            if page.state in states
        ]
        return found[pick % len(found)] if found else None

    def room_may_be_short(self) -> bool:
        return self.figures["live"] >= IDS - 64 or self.figures["segments"] >= SEGMENTS - 2

    # --- What a program does

    @precondition(lambda self: len(self.targets) < TARGETS_MAX)
    @rule()
    def add_target(self) -> None:
        self.targets[int(self.driver.ask("target"))] = {}

    @rule(pick=PICKS, address=ADDRESSES, contents=st.lists(CONTENTS, min_size=1, max_size=12))
    def write(self, pick: int, address: int, contents: list[bytes]) -> None:
        """The program writes to pages it has at hand; evicted ones would have to come in first."""
        pages = self.targets[self.some_target(pick)]
        for index, content in enumerate(contents):
            page = pages.get(address + index * PAGE, Page(b""))
            if page.state == State.RESIDENT:
                pages[address + index * PAGE] = replace(page, content=content)

    @rule(pick=PICKS, content=CONTENTS)
    def rewrite(self, pick: int, content: bytes) -> None:
        chosen = self.some_page(pick, State.RESIDENT)
        if chosen:
            pages = self.targets[chosen[0]]
            pages[chosen[1]] = replace(pages[chosen[1]], content=content)

    @precondition(lambda self: len(self.targets) < TARGETS_MAX)
    @rule(pick=PICKS)
    def fork(self, pick: int) -> None:
        parent = self.some_target(pick)
        self.targets[int(self.driver.ask("fork", parent))] = dict(self.targets[parent])

    @rule(pick=PICKS, start=ADDRESSES, length=LENGTHS)
    def unmap(self, pick: int, start: int, length: int) -> None:
        target = self.some_target(pick)
        self.driver.ask("unmap", target, start, start + length)
        self._forget(target, start, start + length)

    @rule(pick=PICKS, start=ADDRESSES, to=ADDRESSES, length=LENGTHS)
    def remap(self, pick: int, start: int, to: int, length: int) -> None:
        if start < to + length and to < start + length:
            return
        target = self.some_target(pick)
        self.driver.ask("remap", target, start, to, length)
        self._forget(target, to, to + length)
        pages = self.targets[target]
        for address in [a for a in pages if start <= a < start + length]:
            pages[address - start + to] = pages.pop(address)

    @precondition(lambda self: len(self.targets) > 1)
    @rule(pick=PICKS)
    def exit(self, pick: int) -> None:
        target = self.some_target(pick)
        self.driver.ask("exit", target)
        del self.targets[target]

    def _forget(self, target: int, start: int, end: int) -> None:
        pages = self.targets[target]
        for address in [a for a in pages if start <= a < end]:
            del pages[address]

    # --- What the pager does

    @rule(pick=PICKS, limit=st.integers(1, 64))
    def evict(self, pick: int, limit: int) -> None:
        """Evict a contiguous run of resident pages."""
        chosen = self.some_page(pick, State.RESIDENT)
        if not chosen:
            return
        target, start = chosen
        pages = self.targets[target]
        run: list[Page] = []
        while len(run) < limit:
            page = pages.get(start + len(run) * PAGE)
            if not page or page.state != State.RESIDENT:
                break
            run.append(page)
        body = b"".join(page.content for page in run)
        known = {content for content in self.noted if self._must_be_found(content)}
        letters = self.driver.ask("evict", target, start, len(run), pages=body)
        stored = self.driver.dump().words
        for index, (page, letter) in enumerate(zip(run, letters, strict=True)):
            address = start + index * PAGE
            if letter == "n":
                assert self.room_may_be_short()
                continue
            if letter_of(page) != "m":
                assert letter == letter_of(page)
            elif letter == "e":
                assert page.content in self.noted
            else:
                assert letter == "m"
                assert page.content not in known or self.room_may_be_short()
                self.noted[page.content] = stored[target, address][1]
                known.add(page.content)
            pages[address] = replace(page, state=State.EVICTED, kept=None)

    def _must_be_found(self, content: bytes) -> bool:
        """Whether a page of this content shares: what was last stored is live, in RAM, right."""
        stored = self.seen.ids.get(self.noted[content])
        return (
            stored is not None
            and stored.content == content
            and stored.backend in (MEMORY, OBJECT)
            and not self.on_disks
        )

    @rule(pick=PICKS, keep=st.booleans())
    def fault(self, pick: int, keep: bool) -> None:
        chosen = self.some_page(pick, State.EVICTED)
        if not chosen:
            return
        target, address = chosen
        page = self.targets[target][address]
        if self.driver.ask("fault", target, address, int(keep)) == "poisoned":
            # Rule 1: poison, and never for content that is right.
            assert self.seen.words[target, address][1] in self.damaged
            self.targets[target][address] = replace(page, state=State.POISONED)
            return
        assert self.driver.page() == page.content
        kept = page.content if keep else None
        self.targets[target][address] = replace(page, state=State.RESIDENT, kept=kept)

    @rule(pick=PICKS)
    def drop_copy(self, pick: int) -> None:
        chosen = self.some_page(pick, State.RESIDENT)
        if chosen and chosen in self.seen.words:
            self.driver.ask("drop", *chosen)
            pages = self.targets[chosen[0]]
            pages[chosen[1]] = replace(pages[chosen[1]], kept=None)

    @rule(pick=PICKS, count=st.integers(1, 40))
    def drain(self, pick: int, count: int) -> None:
        try:
            self.driver.ask("drain", self.some_target(pick), count)
        except NoRoomError:
            assert self.room_may_be_short()

    @rule()
    def compact(self) -> None:
        try:
            self.driver.ask("compact")
        except NoRoomError:
            assert self.room_may_be_short()

    @rule()
    def pack(self) -> None:
        self.driver.ask("pack")

    @rule()
    def move_what_is_packed(self) -> None:
        self.driver.ask("move")

    @rule()
    def collect(self) -> None:
        self.driver.ask("collect")

    @rule()
    def reap(self) -> None:
        self.driver.ask("reap")

    @rule(
        kind=st.sampled_from([TINY, TEXT, RANDOM]),
        count=st.integers(1, 4200),
        seed=st.integers(0, 1 << 32),
    )
    def add_ballast(self, kind: int, count: int, seed: int) -> None:
        """Other pages fill segments, so that there is something to close and to empty."""
        most = {TINY: 4200, TEXT: 900, RANDOM: 600}[kind]
        self.ballast = int(self.driver.ask("ballast", kind, min(count, most), seed))

    @precondition(lambda self: self.ballast > 0)
    @rule(count=st.integers(1, 16384), seed=st.integers(0, 1 << 32))
    def drop_ballast(self, count: int, seed: int) -> None:
        self.ballast = int(self.driver.ask("unballast", count, seed))

    @rule(pick=PICKS)
    def damage(self, pick: int) -> None:
        """Something overwrites what is stored. Zero and repeated words have nothing stored."""
        stored = sorted(key for key, (_, identifier) in self.seen.words.items() if identifier)
        if stored:
            chosen = stored[pick % len(stored)]
            if self.driver.ask("corrupt", *chosen) == "1":
                self.damaged.add(self.seen.words[chosen][1])

    @rule(pick=PICKS, content=CONTENTS)
    def forge(self, pick: int, content: bytes) -> None:
        """Something stored claims the hash of another page: that one must not get it.

        Nothing of which a copy is kept: whether that is still good is told by the hash alone.
        """
        words = self.seen.words.items()
        kept = {identifier for _, (state, identifier) in words if state == State.RESIDENT}
        stored = sorted(
            key for key, (_, identifier) in words if identifier and identifier not in kept
        )
        if not stored:
            return
        chosen = stored[pick % len(stored)]
        identifier = self.seen.words[chosen][1]
        if self.seen.ids[identifier].content == content:
            return
        if self.driver.ask("forge", *chosen, pages=content) == "1":
            self.damaged.add(identifier)
            self.noted[content] = identifier

    # --- Disks

    @rule(number=st.integers(0, TIERS - 1))
    def add_tier(self, number: int) -> None:
        added = self.driver.ask("tier", number) == "1"
        assert added == (number not in self.tiers)
        self.tiers.add(number)

    @precondition(lambda self: self.tiers)
    @rule(number=st.integers(0, TIERS - 1))
    def remove_tier(self, number: int) -> None:
        """It is gone at once, unless what it holds cannot be read."""
        if self.driver.ask("untier", number) == "1":
            self.tiers.remove(number)
        else:
            assert number not in self.tiers or self.trouble == "reads fail"

    @precondition(lambda self: self.tiers)
    @rule(count=st.integers(1, 6))
    def demote(self, count: int) -> None:
        before = self.on_disks
        self.on_disks = int(self.driver.ask("demote", count))
        if self.trouble == "writes fail":
            assert self.on_disks <= before

    @precondition(lambda self: self.on_disks)
    @rule()
    def recall(self) -> None:
        self.on_disks = int(self.driver.ask("recall"))

    @rule(trouble=st.sampled_from(sorted(TROUBLES)))
    def meet_trouble(self, trouble: str) -> None:
        self.trouble = trouble
        self.driver.ask("trouble", TROUBLES[trouble])

    # --- What must hold

    @invariant()
    def agrees(self) -> None:
        dump = self.driver.dump()
        references: Counter[int] = Counter()
        words = dict(dump.words)
        for target, pages in self.targets.items():
            for address, page in pages.items():
                state, identifier = words.pop((target, address), (State.NONE, 0))
                references[identifier] += 1
                self._agrees_on_page(page, State(state), identifier, dump)
        assert not words  # nothing is known of pages that are not there
        del references[0]
        assert references == {number: stored.count for number, stored in dump.ids.items()}

        self.figures = self.driver.check()
        objects = sum(stored.backend == OBJECT for stored in dump.ids.values())
        assert self.figures["ballast"] == self.ballast
        assert self.figures["live"] == len(references) + self.ballast
        assert self.figures["objects"] == objects + self.ballast
        self.damaged &= set(dump.ids)
        self.seen = dump

    def _agrees_on_page(self, page: Page, state: State, identifier: int, dump: Dump) -> None:
        stored = page.content if page.state == State.EVICTED else page.kept
        if page.state == State.RESIDENT and page.kept is None:
            assert state in (State.NONE, State.RESIDENT)
        else:
            assert state == page.state
        assert bool(identifier) == (stored is not None)
        if stored is not None and dump.ids[identifier].content is None:
            assert identifier in self.damaged
        elif stored is not None:
            assert dump.ids[identifier].content == stored

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            try:
                self.driver.close()
            finally:
                self.driver.kill()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the driver, with sanitizers if the compiler can."""
    missing = [tool for tool in ("cc", "pkg-config") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is needed to build the driver")
    native = REPOSITORY / "native"
    path = tmp_path_factory.mktemp("model") / "model"
    for number in range(TIERS):
        (path.parent / str(number)).mkdir()
    packages = ["liblz4", "libxxhash", "libcrypto"]
    if (
        subprocess.run(["pkg-config", "--exists", "libzstd"], timeout=60, check=False).returncode
        == 0
    ):
        packages.append("libzstd")
    libraries = subprocess.run(
        ["pkg-config", "--cflags", "--libs", *packages],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    ).stdout.split()
    command = ["cc", "-std=gnu11", "-O1", "-g", "-DUSW_DEBUG", "-D_GNU_SOURCE=", "-pthread"]
    command += ["-DUSW_HAS_ZSTD"] * ("libzstd" in packages)
    command += [f"-I{native / folder}" for folder in ("include", "src", "shim")]
    command += [str(native / "src" / f"{name}.c") for name in SOURCES]
    command += [str(native / "tests" / "model.c"), "-o", str(path), *libraries]
    for extra in (SANITIZERS, ()):
        done = subprocess.run(
            [*command, *extra], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode == 0:
            return path
    pytest.fail(done.stderr)


@pytest.fixture
def driver(program: Path) -> Iterator[Driver]:
    """Start a driver; everything it holds must be gone when it is closed."""
    started = Driver(program)
    try:
        yield started
        started.close()
    finally:
        started.kill()


def walk(program: Path, examples: int) -> None:
    """Let hypothesis try so many sequences of operations."""
    SpaceModel.program = program
    run_state_machine_as_test(
        SpaceModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow],
            print_blob=True,
        ),
    )


@pytest.mark.timeout(400)
def test_the_space_is_a_dictionary(program: Path) -> None:
    walk(program, 50)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_space_is_a_dictionary_for_long(program: Path) -> None:
    walk(program, 3000)


def test_compaction_moves_pages_that_are_shared(driver: Driver) -> None:
    """What the random walk must reach, by the shortest way."""
    content = content_of("text", 1)
    parent = int(driver.ask("target"))
    assert driver.ask("evict", parent, PAGE, 1, pages=content) == "m"
    assert driver.ask("drain", parent, 1) == "0"
    child = int(driver.ask("fork", parent))
    driver.ask("ballast", RANDOM, 600, 1)
    driver.ask("unballast", 1 << 16, 2)
    before = driver.check()
    assert driver.ask("compact") == "1"
    after = driver.check()
    assert after["compacted"] == 1
    assert after["segments"] < before["segments"] + 1
    for target in (parent, child):
        driver.ask("fault", target, PAGE, 0)
        assert driver.page() == content


def test_packing_moves_pages_that_are_shared(driver: Driver) -> None:
    contents = [content_of("text", number) for number in range(3)]
    parent = int(driver.ask("target"))
    for number, content in enumerate(contents):
        assert driver.ask("evict", parent, (number + 1) * PAGE, 1, pages=content) == "m"
    assert driver.ask("drain", parent, 3) == "0"
    child = int(driver.ask("fork", parent))
    driver.ask("ballast", TEXT, 900, 1)
    if driver.ask("pack") == "0":
        pytest.skip("the build has no zstd")
    driver.ask("fault", child, 2 * PAGE, 0)  # while its segment is on its way
    assert driver.page() == contents[1]
    driver.ask("unmap", parent, 3 * PAGE, 4 * PAGE)
    driver.ask("unmap", child, 3 * PAGE, 4 * PAGE)
    while driver.ask("move") == "1":
        driver.check()
    driver.ask("fault", parent, PAGE, 1)
    assert driver.page() == contents[0]
    driver.ask("fault", child, PAGE, 0)
    assert driver.page() == contents[0]
    driver.ask("fault", parent, 2 * PAGE, 0)
    assert driver.page() == contents[1]
    driver.check()


def test_damage_is_poison_and_never_another_page(driver: Driver) -> None:
    parent = int(driver.ask("target"))
    assert driver.ask("evict", parent, PAGE, 1, pages=content_of("random", 1)) == "m"
    child = int(driver.ask("fork", parent))
    driver.ask("drain", parent, 1)
    assert driver.ask("corrupt", child, PAGE) == "1"
    for target in (parent, child):
        assert driver.ask("fault", target, PAGE, 0) == "poisoned"
    assert driver.dump().ids == {}


def store(driver: Driver, content: bytes) -> int:
    """Have a new target evict one page; return the target."""
    target = int(driver.ask("target"))
    assert driver.ask("evict", target, PAGE, 1, pages=content) == "m"
    return target


def test_equal_pages_share_one_id(driver: Driver) -> None:
    """Within a target, with another one, with a fork; from standby and from an object."""
    content = content_of("random", 1)
    first = store(driver, content)
    assert driver.ask("evict", first, 2 * PAGE, 2, pages=2 * content) == "ee"
    second = int(driver.ask("target"))
    assert driver.ask("evict", second, PAGE, 1, pages=content) == "e"
    child = int(driver.ask("fork", first))
    assert driver.ask("evict", child, 4 * PAGE, 1, pages=content) == "e"
    dump = driver.dump()
    assert [stored.count for stored in dump.ids.values()] == [8]
    assert driver.check()["objects"] == 1
    driver.ask("fault", second, PAGE, 1)
    assert driver.page() == content
    assert driver.ask("evict", second, PAGE, 1, pages=content) == "c"
    driver.ask("fault", second, PAGE, 1)
    assert driver.page() == content
    written = content_of("random", 2)
    assert driver.ask("evict", second, PAGE, 1, pages=written) == "m"
    driver.ask("exit", first)
    for address in (PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE):
        driver.ask("fault", child, address, 0)
        assert driver.page() == content
    driver.ask("fault", second, PAGE, 0)
    assert driver.page() == written
    assert driver.dump().ids == {}


@pytest.mark.parametrize("drained", [False, True])
def test_a_forged_hash_is_not_shared(driver: Driver, drained: bool) -> None:
    mine, other = content_of("random", 1), content_of("random", 2)
    target = store(driver, other)
    if drained:
        driver.ask("drain", target, 1)
    assert driver.ask("forge", target, PAGE, pages=mine) == "1"
    assert driver.ask("evict", target, 2 * PAGE, 2, pages=2 * mine) == "me"
    second = int(driver.ask("target"))
    assert driver.ask("evict", second, PAGE, 1, pages=mine) == "e"
    for owner, address in ((target, 2 * PAGE), (target, 3 * PAGE), (second, PAGE)):
        driver.ask("fault", owner, address, 0)
        assert driver.page() == mine
    assert driver.ask("fault", target, PAGE, 0) == "poisoned"


def test_a_standby_outlives_its_process_while_others_need_it(driver: Driver) -> None:
    """A page in a dead parent's standby, with no room to move it, is still the child's page."""
    content = content_of("random", 1)
    parent = int(driver.ask("target"))
    assert driver.ask("evict", parent, PAGE, 1, pages=content) == "m"
    child = int(driver.ask("fork", parent))
    while int(driver.ask("ballast", RANDOM, 256, 1)) % 256 == 0:
        if driver.check()["segments"] == SEGMENTS - 1:
            break
    driver.ask("exit", parent)
    assert driver.check()["standby"] == 1
    driver.ask("unballast", 1 << 17, 2)
    driver.ask("reap")
    driver.ask("drain", parent, 1)
    assert driver.check()["standby"] == 0
    driver.ask("fault", child, PAGE, 0)
    assert driver.page() == content


def fill_and_demote(driver: Driver, content: bytes) -> int:
    """Put one page of a new target and some ballast on a disk; return the target."""
    target = int(driver.ask("target"))
    assert driver.ask("evict", target, PAGE, 1, pages=content) == "m"
    assert driver.ask("drain", target, 1) == "0"
    driver.ask("ballast", RANDOM, 600, 1)
    assert driver.ask("tier", 0) == "1"
    assert int(driver.ask("demote", 4)) >= 2
    return target


def test_pages_go_to_a_disk_and_back_and_are_damaged_there(driver: Driver) -> None:
    """What the random walk must reach, by the shortest way."""
    content = content_of("text", 1)
    target = fill_and_demote(driver, content)
    driver.ask("trouble", TROUBLES["reads fail"])
    assert driver.ask("untier", 0) == "0"
    assert [stored.content for stored in driver.dump().ids.values()] == [content]
    driver.ask("trouble", TROUBLES["short transfers"])
    assert driver.ask("untier", 0) == "1"
    driver.ask("fault", target, PAGE, 1)
    assert driver.page() == content

    assert driver.ask("tier", 1) == "1"
    assert int(driver.ask("demote", 4)) >= 2
    assert driver.ask("corrupt", target, PAGE) == "1"
    assert driver.ask("evict", target, PAGE, 1, pages=content) == "c"
    assert driver.ask("recall") == "0"
    assert driver.ask("fault", target, PAGE, 0) == "poisoned"


def test_what_cannot_be_written_is_where_it_was(driver: Driver) -> None:
    content = content_of("random", 3)
    target = int(driver.ask("target"))
    driver.ask("evict", target, PAGE, 1, pages=content)
    driver.ask("drain", target, 1)
    driver.ask("ballast", RANDOM, 600, 1)
    driver.ask("tier", 0)
    driver.ask("trouble", TROUBLES["writes fail"])
    before = driver.check()
    assert driver.ask("demote", 4) == "0"
    assert driver.check() == before
    driver.ask("fault", target, PAGE, 0)
    assert driver.page() == content
