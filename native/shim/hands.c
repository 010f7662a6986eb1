// SPDX-License-Identifier: MIT

/**
 * @file
 * Hands: the task that does in a target's address space what only that address space can do.
 *
 * A thread would be seen (task counts, unshare, fork warnings), so hands shares the memory and
 * nothing else: own descriptors, own signal state, own session, no libc. It must never touch memory
 * that may be evicted, because it alone could bring it back: no thread-local storage, no variable
 * of this library or of libc. All that it knows is on its stack, inside the area.
 *
 * It takes one command at a time from the ring (wire.h has the protocol and says who writes what)
 * and takes no lock but the gate, one MOVE at a time. The ring is writable by the program: what a
 * command says is copied once and checked, so that garbage cannot lead hands outside its stages
 * and slots, and every wait has a bound or ends with the connection.
 */

#include <errno.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "hands.h"

#ifndef MADV_DONTNEED_LOCKED /* 5.18: also where mlockall(2) has locked the area */
#define MADV_DONTNEED_LOCKED 24
#endif

/* The middle task's stack: the top of the stack range, so that it costs no page of its own. */
#define MIDDLE_STACK_BYTES 1024u

/* How long hands waits for the gate, for a busy page of a command, and for anything else in it. */
#define GATE_PATIENCE_MS 1000
#define BUSY_PATIENCE_MS 200
#define COLLECT_PATIENCE_MS 5000

#define AGENT_GRACE_MS 1000
#define OLD_HANDS_PATIENCE_MS 200

/** A pair of staging ranges; both are empty between two commands, but for what `stuck` names. */
struct stages {
	uintptr_t in;
	uintptr_t out;
	uint64_t stuck[USW_BATCH_PAGES_MAX / 64]; /* pages that may have stayed in the "in" stage */
};

struct hands {
	uintptr_t area;
	struct usw_ring *ring;
	int uffd;
	int out_uffd;
	int connection;
	int program;
	uint32_t handled_seq;
	struct stages single;
	struct stages huge;
};

/** One command, as it was when it was taken from the ring. Page numbers count within the batch. */
struct batch {
	uint32_t op;
	uint32_t run_count;
	uint32_t page_count;
	uint32_t epoch;
	bool prepare;
	int error;
	bool over;     /* nothing further may be moved for this command */
	bool unlocked; /* munlock of the stages has been tried */
	uint64_t taken[USW_BATCH_PAGES_MAX / 64];   /* moved out of their places */
	uint64_t left_in[USW_BATCH_PAGES_MAX / 64]; /* of those: still in the "in" stage */
	struct usw_run runs[USW_BATCH_RUNS_MAX];
};

// --- what the compiler may call -----------------------------------------------------------------

/* Compilers emit calls to these two whatever they are told. Hidden, so libc's are never reached. */
void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memset(void *to, int byte, size_t bytes);

__attribute__((visibility("hidden"), used)) void *memcpy(void *restrict to,
							 const void *restrict from, size_t bytes)
{
	void *result = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
	return result;
}

__attribute__((visibility("hidden"), used)) void *memset(void *to, int byte, size_t bytes)
{
	void *result = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(byte) : "memory");
	return result;
}

// --- small things -------------------------------------------------------------------------------

static void bit_set(uint64_t *bits, uint32_t index)
{
	bits[index / 64] |= UINT64_C(1) << (index % 64);
}

static bool bit_test(const uint64_t *bits, uint32_t index)
{
	return bits[index / 64] >> (index % 64) & 1;
}

static void bits_set(uint64_t *bits, uint32_t first, uint32_t count)
{
	for (uint32_t i = first; i < first + count; i++)
		bit_set(bits, i);
}

static bool bits_any(const uint64_t *bits)
{
	uint64_t any = 0;

	for (uint32_t i = 0; i < USW_BATCH_PAGES_MAX / 64; i++)
		any |= bits[i];
	return any != 0;
}

/** By system call, because the way to the vDSO leads through libc's variables. */
static uint64_t now_ns(void)
{
	struct timespec now;

	usw_raw(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
	return now.tv_sec * UINT64_C(1000000000) + now.tv_nsec;
}

struct patience {
	uint32_t waits;
	uint32_t naps;
	uint64_t start_ns; /* of the first nap */
};

/**
 * PAUSE, then yield, then sleep. Returns false, without waiting, when the time is over. Time alone
 * does not end it: a suspended machine wakes up to find that seconds have passed unused.
 */
static bool wait_a_little(struct patience *patience, uint32_t limit_ms)
{
	const struct timespec nap = {.tv_nsec = 200000};

	if (patience->waits < 4000) {
		if (patience->waits++ < 200)
			__builtin_ia32_pause();
		else
			usw_raw(SYS_sched_yield);
		return true;
	}
	if (!patience->start_ns)
		patience->start_ns = now_ns();
	if (patience->naps > limit_ms / 10 &&
	    now_ns() - patience->start_ns >= limit_ms * UINT64_C(1000000))
		return false;
	patience->naps++;
	usw_raw(SYS_nanosleep, &nap, NULL);
	return true;
}

static _Noreturn void leave(int status)
{
	for (;;)
		usw_raw(SYS_exit_group, status);
}

/**
 * The program cannot be kept correct: stop it rather than let it read what is not its own. Where it
 * is another user's by now, we may not: then stay, because while the userfaultfds are open it waits
 * where a page has left, and does not read zeros.
 */
static _Noreturn void kill_program(const struct hands *h)
{
	struct pollfd program = {.fd = h->program, .events = POLLIN};

	while (usw_raw(SYS_pidfd_send_signal, h->program, SIGKILL, 0, 0) == -EPERM)
		if (usw_raw(SYS_poll, &program, 1, -1) == 1)
			break; // it has ended
	leave(1);
}

/**
 * UFFDIO_MOVE. Returns the bytes moved if any, else -errno. The kernel says -EAGAIN for every call
 * that fell short and the true reason only to the one that moves nothing.
 *
 * It is not told to pass over holes but where nothing is made of them (flags): a hole that counted
 * as moved would be stored as a page of zeros, and nothing could tell it from one.
 */
static int64_t move_pages(int uffd, uintptr_t to, uintptr_t from, uint64_t bytes, uint64_t flags)
{
	struct uffdio_move move = {
		.dst = to,
		.src = from,
		.len = bytes,
		.mode = UFFDIO_MOVE_MODE_DONTWAKE | flags,
	};
	long result = usw_raw(SYS_ioctl, uffd, UFFDIO_MOVE, &move);

	if (move.move)
		return move.move;
	return result < 0 ? result : -EIO;
}

/** Whether a page is in memory. To look raises no fault. */
static bool is_there(uintptr_t page)
{
	unsigned char there;

	return usw_raw(SYS_mincore, page, USW_PAGE_BYTES, &there) == 0 && (there & 1);
}

/**
 * What a MOVE has done that was to a place where nothing was. It says EEXIST for pages that it has
 * moved if a bit of a page table entry, such as the accessed bit, changed in the middle: Linux 6.18
 * (move_pages() in mm/userfaultfd.c) keeps the -EAGAIN of that pass, does not count what the next
 * one moves, and meets it at its destination. Such a page is gone from its source, and nobody else
 * has it. Page by page, for how many they are it does not say.
 */
static int64_t recount(int64_t moved, uintptr_t from)
{
	return moved == -EEXIST && !is_there(from) ? (int64_t)USW_PAGE_BYTES : moved;
}

static void drop(uintptr_t start, uint64_t bytes)
{
	usw_raw(SYS_madvise, start, bytes, MADV_DONTNEED_LOCKED);
}

/** After mlockall(2) the stages are locked, and MOVE wants both of its sides alike. */
static void unlock_stages(const struct hands *h)
{
	usw_raw(SYS_munlock, h->area + USW_AREA_STAGE_IN_OFFSET,
		USW_AREA_BYTES - USW_AREA_STAGE_IN_OFFSET);
}

// --- taking a command ---------------------------------------------------------------------------

/** One run: page-aligned, not in the area, and its slots exist. */
static bool run_is_valid(const struct hands *h, const struct usw_run *run)
{
	uint64_t bytes = (uint64_t)run->page_count * USW_PAGE_BYTES;

	if (run->page_count == 0 || run->page_count > USW_BATCH_PAGES_MAX)
		return false;
	if (run->address % USW_PAGE_BYTES || run->address > UINT64_MAX - bytes)
		return false;
	if (run->address < h->area + USW_AREA_BYTES && h->area < run->address + bytes)
		return false;
	return run->slot <= USW_STANDBY_SLOTS - run->page_count;
}

static bool batch_is_valid(const struct hands *h, const struct batch *b)
{
	uint32_t page_count = 0;

	for (uint32_t i = 0; i < b->run_count; i++) {
		if (!run_is_valid(h, &b->runs[i]))
			return false;
		page_count += b->runs[i].page_count;
	}
	if (page_count != b->page_count || page_count > USW_BATCH_PAGES_MAX)
		return false;
	if (b->op == USW_OP_EVICT_HUGE)
		return b->run_count == 1 && page_count == USW_HUGE_PAGES &&
		       b->runs[0].address % USW_HUGE_BYTES == 0;
	return true;
}

/** Copy the command, each field once: the program may be writing to the ring meanwhile. */
static void batch_take(const struct hands *h, struct batch *b)
{
	struct usw_ring *ring = h->ring;

	memset(b, 0, offsetof(struct batch, runs));
	b->op = __atomic_load_n(&ring->op, __ATOMIC_RELAXED);
	b->run_count = __atomic_load_n(&ring->run_count, __ATOMIC_RELAXED);
	b->page_count = __atomic_load_n(&ring->page_count, __ATOMIC_RELAXED);
	b->epoch = __atomic_load_n(&ring->command_epoch, __ATOMIC_RELAXED);
	b->prepare = __atomic_load_n(&ring->prepare, __ATOMIC_RELAXED) != 0;
	if (b->run_count > USW_BATCH_RUNS_MAX) {
		b->error = EINVAL;
		return;
	}
	memcpy(b->runs, ring->runs, b->run_count * sizeof(b->runs[0]));
	if (!batch_is_valid(h, b))
		b->error = EINVAL;
}

/** From here on the command cannot be withdrawn. */
static bool batch_claim(const struct hands *h, uint32_t seq)
{
	uint32_t open = seq;

	return __atomic_compare_exchange_n(&h->ring->open_seq, &open, seq - 1, false,
					   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/** Show the results, then that they are there, then wake whoever sleeps on that. */
static void batch_publish(struct hands *h, const struct batch *b, uint32_t seq)
{
	struct usw_ring *ring = h->ring;

	for (uint32_t i = 0; i < USW_BATCH_PAGES_MAX / 64; i++)
		__atomic_store_n(&ring->moved[i], b->taken[i], __ATOMIC_RELAXED);
	__atomic_store_n(&ring->error, b->error, __ATOMIC_RELAXED);
	h->handled_seq = seq;
	/*
	 * Sequentially consistent with the agent, which sets agent_waiting, then looks at done_seq.
	 */
	__atomic_store_n(&ring->done_seq, seq, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&ring->agent_waiting, __ATOMIC_SEQ_CST))
		usw_raw(SYS_futex, &ring->done_seq, FUTEX_WAKE, INT32_MAX);
}

// --- the gate -----------------------------------------------------------------------------------

/** Returns false if the agent did not let us in for a second. */
static bool gate_enter(struct usw_ring *ring)
{
	struct patience patience = {0};

	for (;;) {
		__atomic_store_n(&ring->gate_hands, 1, __ATOMIC_SEQ_CST);
		if (!__atomic_load_n(&ring->gate_agent, __ATOMIC_SEQ_CST))
			return true;
		__atomic_store_n(&ring->gate_hands, 0, __ATOMIC_SEQ_CST);
		do {
			if (!wait_a_little(&patience, GATE_PATIENCE_MS))
				return false;
		} while (__atomic_load_n(&ring->gate_agent, __ATOMIC_RELAXED));
	}
}

static void gate_leave(struct usw_ring *ring)
{
	__atomic_store_n(&ring->gate_hands, 0, __ATOMIC_RELEASE);
}

static bool epoch_is_current(const struct hands *h, const struct batch *b)
{
	return __atomic_load_n(&h->ring->epoch, __ATOMIC_SEQ_CST) == b->epoch;
}

// --- evict --------------------------------------------------------------------------------------

static bool is_zero(uintptr_t page)
{
	const uint64_t *words = (const uint64_t *)page;

	for (uint32_t i = 0; i < USW_PAGE_BYTES / sizeof(*words); i++)
		if (words[i])
			return false;
	return true;
}

/**
 * What a MOVE that fell short has done and not counted (see recount()): the places in the stage say
 * it, from page number `page` on. A place that was empty holds a page that was moved, or zeros if
 * mlockall(2) has just filled the stages.
 *
 * Inside the gate and at once. Once an event has been read, or waits to be, the same pages cannot be
 * asked for again, and their places may be somebody else's.
 */
static void count_again(struct batch *b, const struct stages *s, uint32_t page, uintptr_t from,
			uint32_t count)
{
	uintptr_t in = s->in + (uint64_t)page * USW_PAGE_BYTES;
	unsigned char there[USW_BATCH_PAGES_MAX];

	if (usw_raw(SYS_mincore, in, (uint64_t)count * USW_PAGE_BYTES, there))
		return;
	for (uint32_t i = 0; i < count; i++, in += USW_PAGE_BYTES, from += USW_PAGE_BYTES)
		if ((there[i] & 1) && !bit_test(s->stuck, page + i) &&
		    (!is_there(from) || !is_zero(in)))
			bit_set(b->taken, page + i);
}

/**
 * One MOVE of `count` pages into the stage from page number `page` on, inside the gate. Nothing is
 * moved, now or later, for a command the world has outrun. 0, or why the first page was not taken.
 */
static int take_guarded(struct hands *h, struct batch *b, const struct stages *s, uint32_t page,
			uintptr_t from, uint32_t count)
{
	uintptr_t to = s->in + (uint64_t)page * USW_PAGE_BYTES;
	int64_t moved = -ECANCELED;

	if (!gate_enter(h->ring))
		return ECANCELED;
	if (epoch_is_current(h, b))
		moved = move_pages(h->uffd, to, from, (uint64_t)count * USW_PAGE_BYTES, 0);
	uint32_t counted = moved > 0 ? (uint32_t)(moved / USW_PAGE_BYTES) : 0;
	bits_set(b->taken, page, counted);
	if (moved == -EEXIST || (counted && counted < count))
		count_again(b, s, page + counted, from + (uint64_t)counted * USW_PAGE_BYTES,
			    count - counted);
	gate_leave(h->ring);
	return bit_test(b->taken, page) ? 0 : (int)-moved;
}

/** What to do about a page that did not move: returns how many pages of the run to pass over. */
static uint32_t take_failed(struct hands *h, struct batch *b, struct stages *s, uint32_t page,
			    int error, uint32_t rest)
{
	if (error == EINVAL && !b->unlocked) {
		b->unlocked = true;
		unlock_stages(h);
		return 0;
	}
	if (error != ENOENT || !b->error) /* the agent acts on others, such as EBUSY */
		b->error = error;
	switch (error) {
	case EBUSY:  /* pinned, or shared since a fork */
	case ENOENT: /* a hole: the program has given it back, or there is no mapping any more */
		return 1;
	case EEXIST: /* another stayed in its place in the stage: stages_clean() takes it away */
		bit_set(s->stuck, page);
		return 1;
	case EAGAIN:    /* an event waits to be read: what the agent planned may be void */
	case ECANCELED: /* so the event has been read, or the agent keeps the gate */
		b->over = true;
		return rest;
	default: /* no mapping, not ours to move, the kernel out of memory: not this run */
		return rest;
	}
}

/** Move one run into the stage, where its pages lie from `first` on. */
static void take_run(struct hands *h, struct batch *b, struct stages *s, const struct usw_run *run,
		     uint32_t first)
{
	uint32_t done = 0;

	while (done < run->page_count) {
		uint32_t rest = run->page_count - done;
		uintptr_t from = run->address + (uint64_t)done * USW_PAGE_BYTES;
		int error = take_guarded(h, b, s, first + done, from, rest);

		if (error)
			done += take_failed(h, b, s, first + done, error, rest);
		while (done < run->page_count && bit_test(b->taken, first + done))
			done++;
	}
}

/** Have the slots' memory before the pages are in our hands: no room is an error, not a SIGBUS. */
static int slots_prepare(const struct hands *h, const struct usw_run *run)
{
	uintptr_t start = h->area + USW_AREA_STANDBY_OFFSET + (uint64_t)run->slot * USW_PAGE_BYTES;

	return (int)-usw_raw(SYS_madvise, start, (uint64_t)run->page_count * USW_PAGE_BYTES,
			     MADV_POPULATE_WRITE);
}

static void take_all(struct hands *h, struct batch *b, struct stages *s)
{
	uint32_t first = 0;

	for (uint32_t i = 0; i < b->run_count && !b->over; i++) {
		int error = b->prepare ? slots_prepare(h, &b->runs[i]) : 0;

		if (error)
			b->error = error;
		else
			take_run(h, b, s, &b->runs[i], first);
		first += b->runs[i].page_count;
	}
}

/**
 * Move pages that were taken on to the "out" stage, from where they can be dropped without an
 * event. Nobody else has these pages any more, so there is no giving up: a page that stays busy
 * (somebody pins what is not his, or the kernel has merged it) is read where it is and fetched
 * later. Any other failure that lasts means that the program has torn up the stages, and has to
 * stop; so does a hole.
 */
static void collect_run(struct hands *h, struct batch *b, struct stages *s, uint32_t first,
			uint32_t end)
{
	struct patience patience = {0};

	while (first < end) {
		uint64_t at = (uint64_t)first * USW_PAGE_BYTES;
		uint64_t bytes = (uint64_t)(end - first) * USW_PAGE_BYTES;
		int64_t moved = recount(move_pages(h->out_uffd, s->out + at, s->in + at, bytes, 0),
					s->in + at);
		bool busy = moved == -EBUSY;

		if (moved > 0) {
			first += moved / USW_PAGE_BYTES;
			continue;
		}
		if (moved == -EEXIST)
			drop(s->out + at, USW_PAGE_BYTES);
		if (moved == -EINVAL)
			unlock_stages(h);
		if (wait_a_little(&patience, busy ? BUSY_PATIENCE_MS : COLLECT_PATIENCE_MS))
			continue;
		if (!busy)
			kill_program(h);
		bit_set(s->stuck, first);
		bit_set(b->left_in, first++);
	}
}

/** Collect what was taken, in runs. */
static void collect(struct hands *h, struct batch *b, struct stages *s)
{
	for (uint32_t first = 0, end; first < b->page_count; first = end) {
		end = first;
		while (end < b->page_count && bit_test(b->taken, end))
			end++;
		if (end > first)
			collect_run(h, b, s, first, end);
		else
			end++; /* this one was not taken */
	}
}

static void copy_page(uintptr_t to, uintptr_t from)
{
	uint64_t bytes = USW_PAGE_BYTES;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}

/** Copy every page that was taken to its slot. */
static void copy_all(struct hands *h, const struct batch *b, const struct stages *s)
{
	uint32_t page = 0;

	for (uint32_t i = 0; i < b->run_count; i++) {
		uintptr_t to = h->area + USW_AREA_STANDBY_OFFSET +
			       (uint64_t)b->runs[i].slot * USW_PAGE_BYTES;

		for (uint32_t k = 0; k < b->runs[i].page_count; k++, page++) {
			uintptr_t stage = bit_test(b->left_in, page) ? s->in : s->out;

			if (bit_test(b->taken, page))
				copy_page(to + (uint64_t)k * USW_PAGE_BYTES,
					  stage + (uint64_t)page * USW_PAGE_BYTES);
		}
	}
}

/** Take one page away that stayed in the "in" stage. Returns false if it is still busy. */
static bool clean_page(struct hands *h, const struct stages *s, uint32_t page)
{
	uintptr_t from = s->in + (uint64_t)page * USW_PAGE_BYTES;
	uintptr_t to = s->out + (uint64_t)page * USW_PAGE_BYTES;
	int64_t moved = 0;

	for (int tries = 0; moved <= 0 && tries < 2; tries++) {
		moved = recount(move_pages(h->out_uffd, to, from, USW_PAGE_BYTES,
					   UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES),
				from);
		/* If the kernel has merged the page (KSM), a write makes it ours again. */
		if (moved == -EBUSY)
			usw_raw(SYS_madvise, from, USW_PAGE_BYTES, MADV_POPULATE_WRITE);
	}
	return moved > 0;
}

/**
 * Empty the "in" stage of what an earlier command could not collect. It has been copied; whatever
 * else may be in the stage stays there.
 */
static void stages_clean(struct hands *h, struct stages *s)
{
	drop(s->out, USW_HUGE_BYTES); /* what has filled the one may have filled the other */
	for (uint32_t page = 0; page < USW_BATCH_PAGES_MAX; page++)
		if (bit_test(s->stuck, page) && clean_page(h, s, page))
			s->stuck[page / 64] &= ~(UINT64_C(1) << (page % 64));
	drop(s->out, USW_HUGE_BYTES);
}

static void evict(struct hands *h, struct batch *b, struct stages *s)
{
	if (bits_any(s->stuck))
		stages_clean(h, s);
	take_all(h, b, s);
	if (!bits_any(b->taken))
		return;
	collect(h, b, s);
	copy_all(h, b, s);
	drop(s->out, (uint64_t)b->page_count * USW_PAGE_BYTES);
}

// --- unshare ------------------------------------------------------------------------------------

/** Writing without changing anything: the kernel copies what is shared, or hands it over. */
static void unshare(struct hands *h, struct batch *b)
{
	uint32_t first = 0;

	for (uint32_t i = 0; i < b->run_count; i++) {
		const struct usw_run *run = &b->runs[i];
		long result;

		if (!epoch_is_current(h, b)) {
			b->error = ECANCELED;
			return;
		}
		result = usw_raw(SYS_madvise, run->address,
				 (uint64_t)run->page_count * USW_PAGE_BYTES, MADV_POPULATE_WRITE);
		if (result)
			b->error = (int)-result;
		else
			bits_set(b->taken, first, run->page_count);
		first += run->page_count;
	}
}

// --- the loop -----------------------------------------------------------------------------------

static void do_command(struct hands *h, uint32_t seq)
{
	struct batch b;

	if (!batch_claim(h, seq)) {
		memset(&b, 0, offsetof(struct batch, runs));
		b.error = ECANCELED;
	} else {
		batch_take(h, &b);
	}
	if (!b.error) {
		switch (b.op) {
		case USW_OP_NONE:
			break;
		case USW_OP_EVICT:
			evict(h, &b, &h->single);
			break;
		case USW_OP_EVICT_HUGE:
			evict(h, &b, &h->huge);
			break;
		case USW_OP_UNSHARE:
			unshare(h, &b);
			break;
		default:
			b.error = ENOSYS;
			break;
		}
	}
	batch_publish(h, &b, seq);
}

/** End of the connection: nobody is left who could serve this program's faults. */
static _Noreturn void agent_gone(struct hands *h)
{
	struct pollfd program = {.fd = h->program, .events = POLLIN};

	if (usw_raw(SYS_poll, &program, 1, AGENT_GRACE_MS) == 1)
		leave(0);
	kill_program(h);
}

static bool work_is_posted(const struct hands *h, uint32_t *seq)
{
	*seq = __atomic_load_n(&h->ring->posted_seq, __ATOMIC_SEQ_CST);
	return *seq != h->handled_seq;
}

/** Sleep in read() until the bell rings. The order of the first two lines is the whole point. */
static void sleep_until_bell(struct hands *h)
{
	uint32_t seq;
	char bell;
	long bytes;

	__atomic_store_n(&h->ring->hands_sleeping, 1, __ATOMIC_SEQ_CST);
	if (!work_is_posted(h, &seq)) {
		bytes = usw_raw(SYS_read, h->connection, &bell, 1);
		if (bytes == 1 && bell == USW_BELL_QUIT)
			leave(0);
		if (bytes <= 0 && bytes != -EINTR)
			agent_gone(h);
	}
	__atomic_store_n(&h->ring->hands_sleeping, 0, __ATOMIC_SEQ_CST);
}

static _Noreturn void serve(struct hands *h)
{
	uint32_t seq;

	for (;;) {
		/*
		 * No spinning: hands runs where the program does, which would have to wait for it.
		 */
		if (work_is_posted(h, &seq))
			do_command(h, seq);
		else
			sleep_until_bell(h);
	}
}

/** Close all but hands' four descriptors: sort them, then close the gaps between them. */
static void close_others(const struct hands *h)
{
	int keep[] = {h->uffd, h->out_uffd, h->connection, h->program};
	unsigned int first = 0;

	for (int i = 0; i < 4; i++) {
		for (int k = i + 1; k < 4; k++) {
			int low = keep[i] < keep[k] ? keep[i] : keep[k];

			keep[k] ^= keep[i] ^ low;
			keep[i] = low;
		}
		if ((unsigned int)keep[i] > first)
			usw_raw(SYS_close_range, first, keep[i] - 1);
		first = keep[i] + 1;
	}
	usw_raw(SYS_close_range, first, ~0u);
}

/** By the call that has sent the hello: a filter that lets that pass lets this pass, too. */
static void say_here(const struct hands *h)
{
	char here = USW_HANDS_HERE;
	struct iovec vector = {.iov_base = &here, .iov_len = 1};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};

	usw_raw(SYS_sendmsg, h->connection, &message, MSG_NOSIGNAL);
}

static void hands_main(void *argument)
{
	const struct usw_hands_start *start = argument;
	struct hands h = {
		.area = start->area,
		.ring = (struct usw_ring *)(start->area + USW_AREA_RING_OFFSET),
		.uffd = start->uffd,
		.out_uffd = start->out_uffd,
		.connection = start->connection,
		.program = start->program,
		.single = {.in = start->area + USW_AREA_STAGE_IN_OFFSET,
			   .out = start->area + USW_AREA_STAGE_OUT_OFFSET},
		.huge = {.in = start->area + USW_AREA_HUGE_IN_OFFSET,
			 .out = start->area + USW_AREA_HUGE_OUT_OFFSET},
	};

	usw_raw(SYS_setsid); /* a signal to the program's process group is not for hands */
	usw_raw(SYS_prctl, PR_SET_NAME, "uffdswap-hands");
	usw_raw(SYS_chdir, "/");
	close_others(&h);
	say_here(&h);
	__atomic_store_n(&h.ring->hands_pid, (uint32_t)usw_raw(SYS_gettid), __ATOMIC_RELEASE);
	serve(&h);
}

// --- start --------------------------------------------------------------------------------------

/** From the top down: what hands is born with, the middle task's stack, hands' own stack. */
static uintptr_t start_address(uintptr_t area)
{
	uintptr_t top = area + USW_AREA_STACK_OFFSET + USW_AREA_STACK_BYTES;

	return (top - sizeof(struct usw_hands_start)) & ~(uintptr_t)63;
}

/**
 * A debugger that follows forks would follow hands, too, and stop it at each of its calls. If the
 * debugger then waits for a page of its own, which waits for room, which hands alone can make, that
 * is the end of the program. So tracing is not inherited, but under a seccomp filter: that may
 * leave calls to the tracer, and what has none gets ENOSYS for them.
 */
static unsigned long untraced(void)
{
	return usw_raw(SYS_prctl, PR_GET_SECCOMP) ? 0 : CLONE_UNTRACED;
}

/**
 * The middle task: makes hands and is gone, so that hands is an orphan. The nearest subreaper (the
 * launcher) inherits it, and the program never has a child that it did not make.
 */
static void middle_main(void *argument)
{
	uintptr_t top = (uintptr_t)argument - MIDDLE_STACK_BYTES;
	long pid = usw_raw_clone(CLONE_VM | untraced(), top, hands_main, argument);

	leave(pid < 0 ? (int)-pid : 0);
}

static int launch_orphan(struct usw_hands_start *own)
{
	int status = 0;
	/* CLONE_VFORK: when it returns, the middle task is through and its stack is free. */
	long pid = usw_raw_clone(CLONE_VM | CLONE_VFORK | untraced(), (uintptr_t)own, middle_main,
				 own);

	if (pid < 0)
		return (int)pid;
	if (usw_raw(SYS_wait4, pid, &status, __WALL, 0) != pid)
		return -ECHILD;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

/**
 * A program that is a subreaper itself would inherit its own hands, and wait for it for ever where
 * it waits for all children. So it is none meanwhile. Nobody else's orphan misses it, unless a
 * process below it, from before an exec, ends in just these microseconds: then the next one above
 * takes that.
 */
static int launch_above_subreaper(struct usw_hands_start *own)
{
	int error;

	usw_raw(SYS_prctl, PR_SET_CHILD_SUBREAPER, 0);
	error = launch_orphan(own);
	usw_raw(SYS_prctl, PR_SET_CHILD_SUBREAPER, 1);
	return error;
}

/**
 * Reap the hands that was a child of the image before this one. The agent has ended it before it
 * welcomed us, or is about to. It is known by its exit signal and by leading a session; what the
 * program itself made by clone(2) stays.
 */
static void reap_old_hands(void)
{
	struct patience patience = {0};
	siginfo_t ended = {0};

	while (!usw_raw(SYS_waitid, P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT | __WCLONE)) {
		if (ended.si_pid && usw_raw(SYS_getsid, ended.si_pid) == ended.si_pid) {
			usw_raw(SYS_wait4, ended.si_pid, NULL, __WCLONE | WNOHANG);
			return;
		}
		if (!wait_a_little(&patience, OLD_HANDS_PATIENCE_MS))
			return;
	}
}

/**
 * The first process of a PID namespace inherits every orphan there is. Its hands stays its child
 * and never becomes an orphan, as the namespace ends with its first process. The exit signal, which
 * is none, keeps it from wait(2) but with __WALL or __WCLONE, and keeps SIGCHLD away.
 */
static int launch_child(struct usw_hands_start *own)
{
	long pid;

	reap_old_hands();
	pid = usw_raw_clone(CLONE_VM | untraced(), (uintptr_t)own - MIDDLE_STACK_BYTES, hands_main,
			    own);
	return pid < 0 ? (int)pid : 0;
}

int usw_hands_launch(const struct usw_hands_start *start)
{
	struct usw_hands_start *own = (struct usw_hands_start *)start_address(start->area);
	int is_subreaper = 0;

	*own = *start;
	if (usw_raw(SYS_getpid) == 1)
		return launch_child(own);
	usw_raw(SYS_prctl, PR_GET_CHILD_SUBREAPER, &is_subreaper);
	return is_subreaper ? launch_above_subreaper(own) : launch_orphan(own);
}
