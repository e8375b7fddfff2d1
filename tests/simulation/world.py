"""One federation with its processes, from its scenario to its history."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import blake3
import numpy as np

import refold
from refold.bus._store import Draft
from refold.bus.contract import Committed, Headers, Place, Record
from refold.bus.memory import MemoryBus, MemoryStore
from refold.bus.topics import Topics, event_headers, is_chunk
from refold.consumers.commands import signed_command
from refold.consumers.server import BACK_OFF_S, Server
from refold.federation import Federation
from refold.keyring import Keyring
from refold.schemas.canonical import decode, encode
from refold.schemas.errors import BusError, FencedError, IntegrityError, InvalidRecord, NotFoundError, TryAgainError
from refold.schemas.events import RoundCommitted
from refold.schemas.rollback import RollBack
from refold.schemas.updates import ClientUpdate
from refold.state.delta import TOPK
from refold.state.optimizers import FedAdam, FedAvg, FedAvgM
from tests.checker import Kept, follow
from tests.simulation.adversary import LIAR, Adversary
from tests.simulation.bus import SimBus
from tests.simulation.clients import Life, Notes
from tests.simulation.disk import Disk
from tests.simulation.faults import Fault, Plot
from tests.simulation.kit import IDLE_S, Kit
from tests.simulation.scenario import Scenario
from tests.simulation.scheduler import FOREVER, Process, Scheduler

NAME = "sim"
BEGIN_S = 1000.0
FAULTS_END_S = BEGIN_S + 30.0
"""From here on no fault happens: what is not done soon after is never done."""
QUIET_S = 4.5
MOST_STEPS = 40_000
MOST_S = 150.0
OPTIMIZERS = {"fedavg": FedAvg(), "fedadam": FedAdam(lr=0.05), "fedavgm": FedAvgM()}
GROWING = FedAvg(lr=16.0)
"""Takes a model out of its lattice in a round or two, which no client's update may do alone."""


@dataclass
class Slot:
    """A place for a process, which is started again and again.

    Parameters
    ----------
    is_done
        A client that took part to the end, or that never comes back.
    since_s
        When its last life began.
    """

    name: str
    process: Process
    lives: int = 0
    since_s: float = 0.0
    is_done: bool = False
    disk: Disk | None = None
    groups: tuple[str, ...] = ()
    server: Server | None = None


class World:
    """Runs one scenario. What went wrong is in `violations`, what was reached in `rare`."""

    def __init__(self, scenario: Scenario, kit: Kit, *, verbose: bool = False) -> None:
        self.scenario = scenario
        self.kit = kit
        self.chance = random.Random(f"run {scenario.seed}")
        self.scheduler = Scheduler(random.Random(f"order {scenario.seed}"), scenario.switching)
        self.plot = Plot(list(scenario.faults))
        self.bus = MemoryBus(clock=self.scheduler.clock.monotonic_s)
        self.topics = Topics(NAME)
        self.store = MemoryStore(self.bus._log)
        self.notes = Notes()
        self.violations: list[str] = []
        self.rare: Counter[str] = Counter()
        self.sent: list[Kept] = []
        self.updates_seen: list[Record] = []
        self.chunks_seen: list[Record] = []
        self.deltas_seen: dict[bytes, bytes] = {}
        self.steps_seen: dict[bytes, bytes] = {}
        """All chunks that ever lay in `deltas` and `steps`, for the fold: what is pruned or damaged was whole before."""

        self.token = ""
        self.late_commits: list[bytes] = []
        self.lines: list[str] | None = [] if verbose else None
        self._trace = blake3.blake3()
        self._last_write_s = 0.0
        self._holders: dict[tuple[str, Place], Process] = {}
        self._lost_tail: list[Record] | None = None
        self._covered_at_loss = b""
        self._before_loss: set[Process] = set()
        self._refusals = 0
        self._gone: set[str] = set()
        self._hurt: set[bytes] = set()
        self._written_while_lost = 0
        self._adversary = Adversary(self, random.Random(f"adversary {scenario.seed}"))
        self.servers = [Slot(f"s{n}", Process(f"s{n}"), groups=groups) for n, groups in enumerate(scenario.servers)]
        self.clients = [Slot(name, Process(name), disk=Disk(kit.folder_for(name))) for name in scenario.clients]

    def run(self) -> None:
        """Make the federation, run it until all is done, and leave everything where it lies."""
        self._found()
        for slot in self.servers:
            self._start_server(slot)
        for number, slot in enumerate(self.clients):
            self._start_client(slot, self.scenario.training_s[number])
        for fault in self.scenario.faults:
            if not fault.point:
                self.scheduler.at(BEGIN_S + fault.at_s, partial(self._befall, fault))
        try:
            self.scheduler.run(self._is_over, most_steps=MOST_STEPS, until_s=BEGIN_S + MOST_S)
        finally:
            self.scheduler.end()

    def _found(self) -> None:
        scenario = self.scenario
        initial = {
            "w": np.array([[0.5, -0.25, 0.125], [1.0, 0.0, -1.0]], "f4"),
            "b": np.zeros(2, "f4"),
            "n": np.array(scenario.counter, "i1"),
        }
        plan = refold.Plan(
            share=scenario.share,
            minimum=scenario.minimum,
            deadline_s=scenario.deadline_s,
            rounds=scenario.rounds,
            evaluate_every=scenario.evaluate_every,
            max_staleness=scenario.max_staleness,
            buffer=scenario.buffer or None,
            heartbeat_s=1.0,
            codec=scenario.codec,
            density=0.25 if scenario.codec == TOPK else None,
        )
        federation = refold.create(
            f"memory:{NAME}",
            initial,
            plan=plan,
            optimizer=GROWING if scenario.grows else OPTIMIZERS[scenario.optimizer],
            snapshots=refold.SnapshotPolicy(*scenario.snapshots),
            defence=scenario.defence,
            partitions=scenario.partitions,
            keys=self.kit.keys,
            rules={"n": "sum"},
            bus=self.bus,
        )
        for name in (*scenario.clients, LIAR) if scenario.has_adversary else scenario.clients:
            if scenario.has_token and name == scenario.clients[0]:
                self.token = federation.token(name)
            else:
                federation.enroll(name, self.kit.key(name).public)
        self.deltas_seen = {self.digest_of(record): record.value or b"" for record in self.records(self.topics.deltas)}
        if scenario.keep_rounds:
            federation.prune(keep_rounds=scenario.keep_rounds)

    def _is_over(self) -> bool:
        if self.scheduler.now_s > FAULTS_END_S:
            self.plot.is_over = True
        done = all(slot.is_done for slot in self.clients)
        is_quiet = self.scheduler.next_timer_s == FOREVER and self.scheduler.now_s - self._last_write_s > QUIET_S
        return done and is_quiet and not self.broken_steps()

    def broken_steps(self) -> set[bytes]:
        """Return the digests of those chunks of rounds' steps that were damaged and are nowhere whole."""
        broken = self._hurt - {self.digest_of(record) for record in self.records(self.topics.steps)} if self._hurt else set()
        if not broken:
            return broken
        rounds, _ = follow(self.topics.rounds, self.records(self.topics.rounds))
        made = [event for step in rounds for event in step.events if isinstance(event, RoundCommitted)]
        return {d for e in made for step in (e.step, e.slots_step) if step is not None for d in step.chunks if d in broken}

    # Processes.

    def _start_server(self, slot: Slot) -> None:
        slot.process = Process(slot.name)
        slot.lives += 1
        slot.since_s = self.scheduler.now_s
        self._expect_work()
        member = slot.name if self.scenario.names_stay else f"{slot.name}.{slot.lives}"
        self.scheduler.spawn(slot.process, slot.name, lambda: self._serve(slot, slot.process, member))

    def _serve(self, slot: Slot, process: Process, member: str) -> None:
        try:
            federation = Federation(SimBus(self, process), NAME, self.kit.keys)  # type: ignore[arg-type]
            slot.server = federation.serve(slot.groups, member=member)
            with slot.server as server:
                server.wait()
        except (BusError, TryAgainError) as error:
            self.note(f"{slot.name} ends: {error}")
        except FencedError:
            self.rare["fenced"] += 1
        except (IntegrityError, NotFoundError) as error:
            self._refuse(slot, error)
            return
        except Exception:
            self.violations.append(f"{slot.name} ended by itself: {traceback.format_exc()}")
            return
        if process.alive and slot.process is process:
            self._again(slot, self._start_server)

    def _refuse(self, slot: Slot, error: IntegrityError | NotFoundError) -> None:
        """A server refused to work: right where a log lost its tail, wrong anywhere else."""
        if self._lost_tail is None:
            self.violations.append(f"{slot.name} refuses to work: {error}")
            return
        self.note(f"{slot.name} refuses to work: {error}")
        self._refusals += 1

    def _start_client(self, slot: Slot, training_s: float) -> None:
        slot.process = Process(slot.name)
        slot.lives += 1
        chance = random.Random(f"client {self.scenario.seed} {slot.name} {slot.lives}")
        assert slot.disk is not None
        life = Life(self, slot.process, slot.name, slot.disk, training_s, chance)
        self.scheduler.spawn(slot.process, slot.name, lambda: self._take_part(slot, life))

    def _take_part(self, slot: Slot, life: Life) -> None:
        try:
            life.run()
            slot.is_done = True
        except (BusError, TryAgainError) as error:
            self.rare["client started again by an error"] += 1
            self.note(f"{slot.name} ends: {error}")
            self._again(slot, lambda slot: self._start_client(slot, life.training_s))
        except Exception:
            self.violations.append(f"{slot.name} ended by itself: {traceback.format_exc()}")
            slot.is_done = True

    def _again(self, slot: Slot, start: Callable[[Slot], None]) -> None:
        """Start a process again, a little later."""
        delay_s, lives = self.chance.choice((0.01, 0.1, 1.0, 3.0)), slot.lives
        self.scheduler.at(self.scheduler.now_s + delay_s, lambda: start(slot) if slot.lives == lives else None)

    def crash(self, process: Process) -> None:
        """Kill a process, and start it again after a while."""
        if not process.alive:
            return
        self.note(f"{process.name} dies")
        self._expect_work()
        self.scheduler.kill(process)
        for slot in self.servers:
            if slot.process is process:
                self._again(slot, self._start_server)
        for number, slot in enumerate(self.clients):
            if slot.process is process and not slot.is_done:
                training_s = self.scenario.training_s[number]
                self._again(slot, lambda slot, training_s=training_s: self._start_client(slot, training_s))  # type: ignore[misc]

    def _expect_work(self) -> None:
        """Do not take it for rest that nothing is written: whoever takes a dead member's places waits for its lease first."""
        self._last_write_s = max(self._last_write_s, self.scheduler.now_s + self.scenario.session_s + 1.0)

    def freeze(self, process: Process, span_s: float) -> None:
        """Let a process stand still for so long."""
        self.note(f"{process.name} freezes for {span_s:.2f} s")
        process.frozen_until_s = self.scheduler.now_s + span_s
        self._last_write_s = max(self._last_write_s, process.frozen_until_s)
        if span_s > self.scenario.session_s:
            self.rare["thawed past its lease"] += 1
        for slot in self.servers:
            if slot.process is process and self.scenario.names_stay and self.chance.random() < 0.5:
                # Whoever looks after the servers takes it for dead, and starts another of its name.
                self._again(slot, self._start_server)

    def _cut_off(self, process: Process, span_s: float) -> None:
        """Let the bus not answer a process for so long."""
        process.cut_off_until_s = self.scheduler.now_s + span_s
        back_s = process.cut_off_until_s + BACK_OFF_S[-1] + self.scenario.session_s
        self._last_write_s = max(self._last_write_s, back_s)

    # What is written.

    def append(self, drafts: list[Draft]) -> list[int]:
        """Write to the bus, keeping a trace, and wake those who wait for it."""
        offsets = self.store.append(drafts, 0.0)
        for draft, offset in zip(drafts, offsets, strict=True):
            record = Record(*draft.place, offset, draft.timestamp_ms, draft.key, draft.value, draft.headers)
            self._keep(record)
            self.note(f"{draft.place.topic}/{draft.place.partition}@{offset} {self.digest_of(record).hex()[:16]}")
        for topic in dict.fromkeys(draft.place.topic for draft in drafts):
            self.scheduler.wake(topic)
            if topic not in (self.topics.health, self.topics.alerts):
                self._last_write_s = max(self._last_write_s, self.scheduler.now_s)
            if (
                self._lost_tail is not None
                and self.scheduler.is_running
                and topic in (self.topics.accepted, self.topics.rounds)
                and self.scheduler.process not in self._before_loss
            ):
                self._written_while_lost += 1
        return offsets

    def _keep(self, record: Record) -> None:
        if record.topic == self.topics.deltas:
            self.deltas_seen[self.digest_of(record)] = record.value or b""
        elif record.topic == self.topics.steps:
            self.steps_seen[self.digest_of(record)] = record.value or b""
        if record.topic != self.topics.updates:
            return
        if is_chunk(record.headers):
            self.chunks_seen.append(record)
        else:
            self.updates_seen.append(record)
            self.sent.append(Kept(record.partition, record.offset, record.value or b""))

    def append_later(self, drafts: list[Draft], span_s: float, why: str) -> None:
        """Write to the bus after a while, whoever wrote it being dead or gone on."""

        self.late_commits += [(d.value or b"") for d in drafts if ("ce_type", b"refold.Commit") in d.headers]

        def arrive() -> None:
            self.rare[why] += 1
            self.append(drafts)

        self.scheduler.at(self.scheduler.now_s + span_s, arrive)

    def write(self, place: Place, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Write one record that no process wrote."""
        partitions = self.bus.topics()[place.topic].partitions
        self.append([Draft(Place(place.topic, place.partition % partitions), 0, key, value, headers)])

    def records(self, topic: str) -> list[Record]:
        """Return what a topic holds now."""
        places = [Place(topic, partition) for partition in range(self.bus.topics()[topic].partitions)]
        return [record for place in places for record in self.bus._log.partitions[place]._records]

    def sent_digests(self) -> set[bytes]:
        """Return the digests of all updates that ever came."""
        found = set()
        for kept in self.sent:
            try:
                found.add(decode(kept.value, ClientUpdate).digest)
            except InvalidRecord:
                continue
        return found

    @staticmethod
    def digest_of(record: Record) -> bytes:
        """Return the digest of a record's value."""
        return blake3.blake3(record.value or b"").digest()

    def note(self, line: str) -> None:
        """Add a line to the trace."""
        line = f"{self.scheduler.now_s - BEGIN_S:9.4f} {self.scheduler.actor:24} {line}"
        self._trace.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def digest(self) -> str:
        """Return one number for the whole history: the trace, and every byte that lies in a topic."""
        total = self._trace.copy()
        for topic in self.bus.topics():
            for record in self.records(topic):
                total.update(repr((record.topic, record.partition, record.offset, record.key, record.headers)).encode())
                total.update(record.value or b"")
        return total.hexdigest()[:32]

    def took_over(self, group: str, places: frozenset[Place], process: Process) -> None:
        """Take note of who reads what from now on."""
        for place in places:
            before = self._holders.get((group, place))
            if before is not None and before is not process:
                kind = "place moved between the living" if before.alive else "place taken over from the dead"
                self.rare[kind] += 1
            self._holders[group, place] = process

    # Faults at a time.

    def _befall(self, fault: Fault) -> None:
        self.note(f"fault: {fault}")
        self.plot.happened.append(fault)
        everyone = [slot for slot in (*self.servers, *self.clients) if slot.process.alive]
        slot = everyone[fault.pick % len(everyone)] if everyone else None
        match fault.what:
            case "crash" if slot:
                self.crash(slot.process)
            case "freeze" if slot:
                self.freeze(slot.process, fault.span_s)
            case "cut off" if slot:
                self._cut_off(slot.process, fault.span_s)
            case "cut off all":
                for slot in everyone:
                    self._cut_off(slot.process, fault.span_s)
            case "stop":
                self._stop(self.servers[fault.pick % len(self.servers)])
            case "join":
                self._join(fault)
            case "lose disk":
                self._lose_disk(self.clients[fault.pick % len(self.clients)])
            case "second session":
                self._second_session(self.clients[fault.pick % len(self.clients)], fault.span_s)
            case "gone":
                self._leave(self.clients[fault.pick % len(self.clients)])
            case "gap":
                # What waits until they are back is then told of in one batch.
                self._crash_consistency()
                self.plot.again("checked/Checked", 1, "hole" if fault.pick % 2 else "hole-crash", fault.pick)
            case "move offsets":
                self._move_offsets(fault)
            case "compact":
                self.bus.compact()
            case "damage snapshot":
                self._damage_snapshot(fault.pick)
            case "damage step":
                steps = self.records(self.topics.steps)
                self._hurt |= {self.digest_of(hurt) for hurt in self._damage(steps, fault.pick, "step damaged")}
            case "lose tail":
                self._lose_tail(fault)
            case "roll back":
                self._roll_back(fault.pick)
            case _:
                method = getattr(self._adversary, fault.what.replace(" ", "_"), None)
                if method is not None:
                    method(fault.pick)

    def _roll_back(self, pick: int) -> None:
        """Order, as the operator, that training goes on from some earlier round, of this branch or one that was left."""
        rounds, _ = follow(self.topics.rounds, self.records(self.topics.rounds))
        made = sum(isinstance(event, RoundCommitted) for step in rounds for event in step.events)
        if not made:
            return
        command = signed_command(NAME, RollBack(pick % made, "simulated"), Keyring(self.kit.keys).operator())
        headers = event_headers("RollBack", source=self.topics.commands, subject="operator", identity="-", time_ms=0)
        self.write(Place(self.topics.commands, 0), None, encode(command), headers)

    def _stop(self, slot: Slot) -> None:
        """Ask a server to stop; it is started again when it has."""
        if slot.process.alive and slot.server is not None:
            slot.server._stop.set()

    def _join(self, fault: Fault) -> None:
        """Start one more member of consistency for a while."""
        extra = Slot(f"x{fault.pick}", Process("-"), groups=("consistency",))
        self._start_server(extra)

        def leave() -> None:
            if fault.pick % 2:
                self.scheduler.kill(extra.process)
            elif extra.server is not None:
                extra.server._stop.set()

        self.scheduler.at(self.scheduler.now_s + fault.span_s, leave)

    def _lose_disk(self, slot: Slot) -> None:
        assert slot.disk is not None
        if not slot.is_done:
            self.crash(slot.process)
            slot.disk.clear()
            self.notes.forget(slot.name)
            self.rare["client lost its disk"] += 1

    def _leave(self, slot: Slot) -> None:
        """End a client for ever, where the others suffice."""
        left = [other for other in self.clients if other is not slot and other.name not in self._gone]
        if len(left) >= self.scenario.minimum and left:
            self._gone.add(slot.name)
            self.scheduler.kill(slot.process)
            slot.is_done = True
            slot.lives += 1
            self.rare["client never came back"] += 1

    def _move_offsets(self, fault: Fault) -> None:
        """Move the offsets of `consistency` to the ends, or forget them, and kill those who know better."""
        for partition in range(self.scenario.partitions):
            key = (f"{NAME}.consistency", Place(self.topics.updates, partition))
            if fault.pick % 3:
                self.bus._log.offsets[key] = Committed(self.bus.end_offset(key[1]))
            else:
                self.bus._log.offsets.pop(key, None)
        self.rare["group offsets moved"] += 1
        self._crash_consistency()

    def _crash_consistency(self) -> None:
        for slot in self.servers:
            if "consistency" in slot.groups:
                self.crash(slot.process)

    def _second_session(self, slot: Slot, span_s: float) -> None:
        """Start another process of a client, with a disk of its own, for a while."""
        process = Process(f"{slot.name}'")
        chance = random.Random(f"second {self.scenario.seed} {slot.name}")
        life = Life(self, process, slot.name, Disk(self.kit.folder_for(process.name)), 0.0, chance, reports=False)
        self.notes.forget(slot.name)
        self.notes.twice.add(slot.name)

        def take_part() -> None:
            try:
                life.run()
            except (BusError, TryAgainError) as error:
                self.note(f"{process.name} ends: {error}")
            except Exception:
                self.violations.append(f"{process.name} ended by itself: {traceback.format_exc()}")

        self.scheduler.spawn(process, process.name, take_part)
        self.scheduler.at(self.scheduler.now_s + span_s, lambda: self.scheduler.kill(process))

    def _damage_snapshot(self, pick: int) -> None:
        """Flip a bit of a record that a snapshot is made of, but of no manifest and not of round 0's.

        The initial state may be nowhere else; everything that was made of it can be made again.
        """
        chunks = self.records(self.topics.snapshot_chunks)
        self._damage([r for r in chunks if not (r.key or b"").startswith(b"0/")], pick, "snapshot damaged")

    def _damage(self, records: list[Record], pick: int, rare: str) -> list[Record]:
        """Flip a bit of one of some records, and return which, as it was."""
        found = [record for record in records if record.value]
        if found:
            record = found[pick % len(found)]
            value = bytearray(record.value or b"")
            value[pick % len(value)] ^= 1 << pick % 8
            log = self.bus._log.partitions[Place(record.topic, record.partition)]
            log._records[log._records.index(record)] = replace(record, value=bytes(value))
            self.rare[rare] += 1
            return [record]
        return []

    def _lose_tail(self, fault: Fault) -> None:
        """Kill all servers and cut `accepted` shorter than what `rounds` covers; see them refuse; mend it."""
        if self._lost_tail is not None:
            return
        place = Place(self.topics.accepted, 0)
        log = self.bus._log.partitions[place]
        self._covered_at_loss = self._covered_hash()
        covered = self._place_of(self._covered_at_loss)
        if covered < 1:
            return
        for slot in self.servers:
            self.scheduler.kill(slot.process)
        self._lost_tail, self._refusals, self._written_while_lost = list(log._records), 0, 0
        # One that stands frozen beside its own successor still writes what it had in hand; it decided that on the whole log.
        self._before_loss = self.scheduler.processes
        log._records = log._records[: max(1, covered - fault.pick % 2)]
        log.next_offset = len(log._records)
        for slot in self.servers:
            slot.lives += 1
            self.scheduler.at(self.scheduler.now_s + 0.5, partial(self._start_server, slot))
        self.scheduler.at(self.scheduler.now_s + 6.0, self._mend)

    def _had_to_refuse(self) -> bool:
        """Whether one that decides lived to see that the tail was lost.

        It takes the place once the lease of who held it before has lapsed. Where another fault struck one of those that may
        hold it, the dead may hold it until now, or one that cannot look.
        """
        now_s, lease_s = self.scheduler.now_s, self.scenario.session_s + IDLE_S
        return all(
            slot.process.alive
            and now_s - slot.since_s > lease_s
            and max(slot.process.frozen_until_s, slot.process.cut_off_until_s) <= slot.since_s
            for slot in self.servers
            if "detection" in slot.groups
        )

    def _covered_hash(self) -> bytes:
        """Return the hash of the commit of `accepted` that `rounds` covers."""
        rounds, _ = follow(self.topics.rounds, self.records(self.topics.rounds))
        return rounds[-1].commit.position.accepted_hash if rounds else b""

    def _place_of(self, covered: bytes) -> int:
        """Return where in `accepted` the commit with this hash lies, or -1."""
        for place, record in enumerate(self.records(self.topics.accepted)):
            if blake3.blake3(record.value or b"", derive_key_context="refold 2026 commit").digest() == covered:
                return place
        return -1

    def _is_whole_again(self) -> bool:
        try:
            chain, _ = follow(self.topics.accepted, self.records(self.topics.accepted))
        except KeyError:  # A commit without the events that were written before it.
            return False
        return any(step.hash == self._covered_at_loss for step in chain)

    def _judge_loss(self) -> None:
        if written := self._written_while_lost:
            self.violations.append(f"a log that lost its tail was gone on with: {written} written, {self._refusals} refused")
        if not self._refusals and self._had_to_refuse():
            self.violations.append("a log that lost its tail was served: nobody refused")
        self.rare["lost tail refused"] += self._refusals

    def _mend(self) -> None:
        """Put back what was lost, as from a copy, and start the servers again."""
        assert self._lost_tail is not None
        # Where the bus repeated the very record that was lost, the log is whole, and whoever went on with it was right.
        if not self._is_whole_again():
            self._judge_loss()
            log = self.bus._log.partitions[Place(self.topics.accepted, 0)]
            log._records, log.next_offset = self._lost_tail, len(self._lost_tail)
        self._lost_tail = None
        for slot in self.servers:
            self.scheduler.kill(slot.process)
            self._start_server(slot)
