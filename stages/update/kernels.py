"""Triton kernels of the pipelined update: judge what has been hashed, and copy rows in the order of chains.

All of them take their work as tables of addresses, made once per update, so that a batch of any shape is one launch.
`work` `[W, 2]` (int32) gives each program a task and a chunk of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stages.checksum_kernel import mixed

COPY_BYTES = 32768
"""Bytes of a row that one program copies, COPY_BLOCK elements at a time."""
COPY_BLOCK = 2048


@triton.jit(do_not_specialize=["first", "last", "batch", "length"])
def judge(first, last, sums, nbytes, truth, found, ballots, batch, length, WIDTH: tl.constexpr):
    """Finish the sums of tasks `first` to `last` - 1 into `found`, and clear them. `ballots[batch]` becomes 1 where one
    is not its `truth`, or where the batch before was not committed."""
    bad = 0
    for start in range(first, last, WIDTH):
        task = start + tl.arange(0, WIDTH)
        inside = task < last
        size = tl.load(nbytes + task, mask=inside, other=0) * length
        raw = tl.load(sums + task, mask=inside, other=0).to(tl.uint64, bitcast=True)
        value = mixed(raw + size.to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)
        wrong = inside & (value != tl.load(truth + task, mask=inside, other=0))
        bad += tl.sum(wrong.to(tl.int32), axis=0)
        tl.store(found + task, value, mask=inside)
        tl.store(sums + task, tl.zeros((WIDTH,), tl.int64), mask=inside)
    before = tl.load(ballots + batch - 1, mask=batch > 0, other=0)
    if (bad > 0) | (before > 0):
        tl.store(ballots + batch, tl.maximum(tl.load(ballots + batch), 1))


@triton.jit(do_not_specialize=["start", "batch"])
def copy_chains(
    work,
    start,
    ballots,
    batch,
    begin,
    target,
    source,
    nbytes,
    circular,
    WORD: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Carry out the copies `begin[task]` to `begin[task + 1]` of one chunk in order, unless the batch's ballot says
    no.

    Since every copy of a chain touches the same bytes of its rows, chunks are independent of each other. Where a chain
    is circular, what its last copy takes is held from the start. WORD: bytes an element.
    """
    if tl.load(ballots + batch) == 0:
        program = start + tl.program_id(0)
        task = tl.load(work + 2 * program).to(tl.int64)
        chunk = tl.load(work + 2 * program + 1).to(tl.int64)
        first = tl.load(begin + task)
        last = tl.load(begin + task + 1)
        count = tl.load(nbytes + task) // WORD
        closes = tl.load(circular + task)
        for offset in range(0, CHUNK // WORD, BLOCK):
            at = chunk * (CHUNK // WORD) + offset + tl.arange(0, BLOCK)
            inside = at < count
            held = _load(source, last - 1, at, inside & (closes != 0), WORD)
            for n in range(first, last - closes):
                value = _load(source, n, at, inside, WORD)
                _store(target, n, at, value, inside, WORD)
                tl.debug_barrier()  # the next copy may overwrite what this one has read
            _store(target, last - 1, at, held, inside & (closes != 0), WORD)


@triton.jit(do_not_specialize=["start", "batch"])
def save_rows(
    work,
    start,
    ballots,
    batch,
    stage,
    target,
    source,
    nbytes,
    WORD: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy each task if the ballot of `batch` says no, and that of the batch `stage[task]`, in which it
    came (-1: before), does not."""
    if tl.load(ballots + batch) != 0:
        program = start + tl.program_id(0)
        task = tl.load(work + 2 * program).to(tl.int64)
        chunk = tl.load(work + 2 * program + 1).to(tl.int64)
        came = tl.load(stage + task)
        if tl.load(ballots + came, mask=came >= 0, other=0) == 0:
            count = tl.load(nbytes + task) // WORD
            for offset in range(0, CHUNK // WORD, BLOCK):
                at = chunk * (CHUNK // WORD) + offset + tl.arange(0, BLOCK)
                value = _load(source, task, at, at < count, WORD)
                _store(target, task, at, value, at < count, WORD)


@triton.jit(do_not_specialize=["start", "stop"])
def push(work, start, stop, target, source, nbytes, WORD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Do items `start` to `stop` - 1 of `work`: copy row after row, chunk by chunk, with as many programs as are started: few leave the GPU to others."""
    for item in range(start + tl.program_id(0), stop, tl.num_programs(0)):
        task = tl.load(work + 2 * item).to(tl.int64)
        chunk = tl.load(work + 2 * item + 1).to(tl.int64)
        count = tl.load(nbytes + task) // WORD
        for offset in range(0, CHUNK // WORD, BLOCK):
            at = chunk * (CHUNK // WORD) + offset + tl.arange(0, BLOCK)
            value = _load(source, task, at, at < count, WORD)
            _store(target, task, at, value, at < count, WORD)


@triton.jit
def _row(table, n, WORD: tl.constexpr):
    """The row whose address is entry n of `table`, as elements of WORD bytes."""
    if WORD == 8:
        row = tl.multiple_of(tl.load(table + n).to(tl.pointer_type(tl.int64)), 16)
    else:
        row = tl.load(table + n).to(tl.pointer_type(tl.uint8))
    return row


@triton.jit
def _load(table, n, at, mask, WORD: tl.constexpr):
    return tl.load(_row(table, n, WORD) + at, mask=mask, other=0)


@triton.jit
def _store(table, n, at, value, mask, WORD: tl.constexpr):
    tl.store(_row(table, n, WORD) + at, value, mask=mask)


@triton.jit(do_not_specialize=["rank", "ranks", "channel", "epoch", "batch", "timeout_ns"])
def meet(pads, own_pad, rank, ranks, channel, epoch, ballots, batch, timeout_ns, PEERS: tl.constexpr):
    """Tell all ranks that this one has come to `epoch` of `channel`, and its ballot, and wait for all of theirs.

    `pads[r]` is the address of rank r's pad, int64 `[channels, ranks]`, where rank q writes entry q; what is written is
    2 * epoch + ballot, and grows. Afterwards `ballots[batch]` is 1 if one rank's was, or its ballot of the batch before;
    2 + r if rank r did not come in time.
    """
    peer = tl.arange(0, PEERS)
    there = peer < ranks
    cell = channel * ranks
    mine = tl.maximum(tl.load(ballots + batch), tl.load(ballots + batch - 1, mask=batch > 0, other=0))
    no = tl.minimum(mine, 1).to(tl.int64)
    address = tl.load(pads + peer, mask=there, other=0)
    remote = address.to(tl.pointer_type(tl.int64)) + cell + rank
    tl.atomic_xchg(remote, tl.full((PEERS,), 0, tl.int64) + 2 * epoch + no, mask=there, sem="release", scope="sys")
    own = own_pad + cell + peer
    zero = tl.zeros((PEERS,), tl.int64)
    patience = tl.where(mine > 1, 0, timeout_ns)  # once a rank has been missed nobody is waited for
    seen = tl.atomic_add(own, zero, mask=there, sem="acquire", scope="sys")
    late = there & (seen < 2 * epoch)
    begin = _now()
    while (tl.sum(late.to(tl.int32), axis=0) > 0) & (_now() - begin < patience):
        seen = tl.atomic_add(own, zero, mask=there, sem="acquire", scope="sys")
        late = there & (seen < 2 * epoch)
    value = tl.max(tl.where(there & (seen == 2 * epoch + 1), 1, 0), axis=0)
    if tl.sum(late.to(tl.int32), axis=0) > 0:
        value = 2 + tl.max(tl.where(late, peer, 0), axis=0)
    tl.store(ballots + batch, tl.maximum(value, mine))


@triton.jit
def _now():
    return tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
