// SPDX-License-Identifier: MIT

/**
 * @file
 * The thread that moves. See mover.h.
 */

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "landing.h"
#include "mover.h"
#include "priority.h"

/* A move reads or writes so much at a time. */
#define USW_PIECE_BYTES 131072u
/* So many pieces at a time are read for a removal if a fault has asked for an object so lately. */
#define USW_POLITE_PIECES 2u
#define USW_POLITE_NS 1000000
/* The mover runs before programs for so long after nothing but a disk could make room. */
#define USW_NEEDED_NS 10000000
/* Buffers that were not needed for so long are given back: they count against the budget. It is done
   before the session is called full. */
#define USW_IDLE_MS 100

void usw_mover_wake(struct usw_tiers *tiers)
{
	uint64_t one = 1;

	if (write(tiers->wake_fd, &one, sizeof(one)) < 0)
		return; // EAGAIN: it will wake anyway
}

/**
 * A tier is being emptied while programs fault on it. Nobody waits for that, and each of those faults
 * waits behind all that was asked for before.
 */
static bool is_to_hold(const struct usw_tiers *tiers, const struct usw_move *move)
{
	const struct usw_tier *tier = &tiers->at[usw_where_tier(move->from)];
	uint64_t faulted_ns = atomic_load_explicit(&tier->faulted_ns, memory_order_relaxed);

	// Signed: a fault may be newer than our look at the clock.
	return !move->is_write && usw_aio_under_way(tiers->aio) >= USW_POLITE_PIECES &&
	       atomic_load_explicit(&tier->state, memory_order_relaxed) == USW_TIER_LEAVING &&
	       (int64_t)(usw_now_ns() - faulted_ns) < USW_POLITE_NS;
}

/**
 * Ask for the next piece, or hold it until others are through. They are small: a fault that wants one
 * page from the same disk waits behind them. A virtual disk that takes one of its 256 descriptors for
 * each page has no room for anything beside a segment that is written with one request. 0 or -errno.
 */
static int ask_piece(struct usw_tiers *tiers, struct usw_move *move)
{
	move->is_held = is_to_hold(tiers, move);
	if (move->is_held)
		return 0;
	uint64_t place = move->is_write ? move->to : move->from;
	uint32_t left = move->length_bytes - move->asked_bytes;
	uint32_t length = (uint32_t)usw_min(left, USW_PIECE_BYTES);

	move->request = (struct usw_aio_request){
		.fd = atomic_load(&tiers->at[usw_where_tier(place)].fd),
		.is_write = move->is_write,
		.length_bytes = length,
		.buffer = move->buffer + move->asked_bytes,
		.offset_bytes = usw_disk_offset(usw_where_slot(place)) + move->asked_bytes,
	};
	int ret = usw_aio_submit(tiers->aio, &move->request);
	if (!ret)
		move->asked_bytes += length;
	return ret;
}

static void fail(struct usw_move *move, int error)
{
	move->request.result = error;
	move->is_through = true;
}

static void go_on(struct usw_tiers *tiers, struct usw_move *move)
{
	int ret = ask_piece(tiers, move);

	if (ret)
		fail(move, ret);
}

/** Take note of what the disk has done, and go on with it. */
static void collect(struct usw_tiers *tiers)
{
	struct usw_aio_request *request;

	while ((request = usw_aio_reap(tiers->aio))) {
		struct usw_move *move =
			(struct usw_move *)((char *)request - offsetof(struct usw_move, request));

		if (!request->result && move->asked_bytes < move->length_bytes)
			go_on(tiers, move);
		else
			move->is_through = true;
	}
}

/** Start the transfer of what is asked for; that of a write is filled already. */
static void start(struct usw_tiers *tiers, struct usw_move *move, int ret)
{
	move->asked_bytes = 0;
	move->is_through = false;
	atomic_store_explicit(&move->stage, USW_MOVE_RUNNING, memory_order_relaxed);
	if (ret)
		fail(move, ret);
	else
		go_on(tiers, move);
}

static int make_buffer(struct usw_move *move)
{
	if (move->buffer)
		return 0;
	void *buffer = mmap(NULL, USW_SLOT_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		return -errno;
	move->buffer = buffer;
	return 0;
}

static void give_buffers_back(struct usw_tiers *tiers)
{
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		struct usw_move *move = &tiers->moves[i];

		if (!move->buffer || atomic_load(&move->stage) == USW_MOVE_RUNNING)
			continue;
		munmap(move->buffer, USW_SLOT_BYTES);
		move->buffer = NULL;
	}
}

static bool has_buffers(const struct usw_tiers *tiers)
{
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++)
		if (tiers->moves[i].buffer)
			return true;
	return false;
}

static bool is_asked(const struct usw_move *move)
{
	return atomic_load_explicit(&move->stage, memory_order_acquire) == USW_MOVE_ASKED;
}

/**
 * Keep the disk busy: take note of what it has done, go on with it, and begin the reads that are
 * asked for. Called in the middle of work, since a disk that waits for a segment to be opened is
 * idle for as long as that takes.
 */
static void look_after_disk(struct usw_tiers *tiers)
{
	collect(tiers);
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		struct usw_move *move = &tiers->moves[i];

		if (is_asked(move) && !move->is_write)
			start(tiers, move, make_buffer(move));
		else if (move->is_held)
			go_on(tiers, move);
	}
	usw_aio_flush(tiers->aio);
}

/** What a segment's objects are in a slot: sealed, each with its tag, holes where nothing lives. */
static int fill_slot(struct usw_tiers *tiers, struct usw_move *move)
{
	struct usw_segments *segments = tiers->segments;
	uint32_t count = usw_segments_header(segments, move->segment)->object_count;
	struct usw_object object;

	for (uint32_t index = 0; index < count; index++) {
		if (index % USW_LOOK_OBJECTS == 0)
			look_after_disk(tiers);
		if (!usw_segments_find(segments, move->segment, index, &object))
			continue;
		char *out = move->buffer + usw_disk_object_offset(&object, index);

		object.where = move->to;
		if (!tiers->is_sealed)
			memcpy(out, object.bytes, object.length_bytes);
		else if (usw_tier_seal(tiers, &tiers->sealer, move->segment, index, &object, out))
			return -EIO;
	}
	return 0;
}

/** What was read is opened, by the opener if that has nothing to do: meanwhile more comes. */
static void finish_move(struct usw_tiers *tiers, struct usw_move *move)
{
	bool is_to_open = !move->is_write && move->request.result == 0;

	move->is_through = false;
	if (is_to_open && usw_opener_take(&tiers->opener, move))
		return;
	if (is_to_open)
		move->request.result = usw_land(tiers, &tiers->sealer, move, look_after_disk);
	atomic_store_explicit(&move->stage, USW_MOVE_DONE, memory_order_release);
	tiers->hooks.moved(tiers->hooks.context);
}

static void begin_write(struct usw_tiers *tiers, struct usw_move *move)
{
	int ret = make_buffer(move);

	usw_disk_reach(tiers->at[usw_where_tier(move->to)].disk, usw_where_slot(move->to));
	start(tiers, move, ret ? ret : fill_slot(tiers, move));
	usw_aio_flush(tiers->aio);
}

static bool is_to_finish(const struct usw_move *move)
{
	return atomic_load_explicit(&move->stage, memory_order_relaxed) == USW_MOVE_RUNNING &&
	       move->is_through;
}

/**
 * Begin what is asked for and finish what is through; each in turn, so that there is always
 * something for the disk. True if there was something.
 */
static bool serve_moves(struct usw_tiers *tiers)
{
	bool busy = false;

	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		struct usw_move *move = &tiers->moves[i];

		look_after_disk(tiers);
		if (is_asked(move) && move->is_write) {
			begin_write(tiers, move);
			busy = true;
		} else if (is_to_finish(move)) {
			finish_move(tiers, move);
			busy = true;
		}
	}
	// One that was passed over may be through by now, and nothing would tell of it again.
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++)
		busy |= is_to_finish(&tiers->moves[i]);
	return busy;
}

/** Give space back on disks, one slot at a time. True if there was one. */
static bool give_dead_slot(struct usw_tiers *tiers)
{
	struct usw_dead_slot dead = {0};

	pthread_mutex_lock(&tiers->lock);
	if (tiers->dead_tail != tiers->dead_head)
		dead = tiers->dead[tiers->dead_tail++ % USW_DEAD_SLOTS_MAX];
	pthread_mutex_unlock(&tiers->lock);
	if (!dead.length_bytes)
		return false;
	usw_disk_give(tiers->at[dead.tier].disk, dead.slot, dead.length_bytes);
	return true;
}

/** A file that nobody needs any more gives all of its space back at once. */
static void end_files(struct usw_tiers *tiers)
{
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_tier *tier = &tiers->at[i];

		if (atomic_load_explicit(&tier->ending, memory_order_acquire) != USW_ENDING_ASKED)
			continue;
		if (ftruncate(atomic_load(&tier->fd), 0) < 0)
			errno = 0; // closing it does the same
		atomic_store_explicit(&tier->ending, USW_ENDING_DONE, memory_order_release);
		tiers->hooks.moved(tiers->hooks.context);
	}
}

/** Programs run while content goes down ahead of need; not while they would wait for it. */
static void follow_need(const struct usw_tiers *tiers, int nice, bool *hurries)
{
	uint64_t needed_ns = atomic_load_explicit(&tiers->needed_ns, memory_order_relaxed);
	bool is_needed = (int64_t)(usw_now_ns() - needed_ns) < USW_NEEDED_NS;

	if (is_needed == *hurries)
		return;
	*hurries = is_needed;
	if (is_needed)
		usw_priority_hurry_less();
	else
		usw_priority_hurry_no_more(nice);
}

void *usw_mover_main(void *argument)
{
	struct usw_tiers *tiers = argument;
	struct pollfd ready[] = {{.fd = tiers->wake_fd, .events = POLLIN},
				 {.fd = usw_aio_fd(tiers->aio), .events = POLLIN}};
	int nice = usw_priority_nice();
	bool hurries = false;
	uint64_t wakes;

	while (!atomic_load(&tiers->stopping) || usw_aio_under_way(tiers->aio)) {
		follow_need(tiers, nice, &hurries);
		bool busy = serve_moves(tiers);

		busy |= give_dead_slot(tiers);
		end_files(tiers);
		if (busy)
			continue;
		int count = poll(ready, 2, has_buffers(tiers) ? USW_IDLE_MS : -1);
		if (!count)
			give_buffers_back(tiers);
		if (count <= 0)
			continue;
		if (ready[0].revents && read(tiers->wake_fd, &wakes, sizeof(wakes)) < 0)
			continue; // somebody's wake was taken together with an earlier one
	}
	return NULL;
}
