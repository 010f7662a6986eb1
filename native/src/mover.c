// SPDX-License-Identifier: MIT

/**
 * @file
 * The thread that moves. See mover.h.
 */

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "mover.h"
#include "uffd_abi.h"

/* A move reads so much at a time, and looks after the disk each so many objects. */
#define USW_PIECE_BYTES 65536u
#define USW_LOOK_OBJECTS 16u

void usw_mover_wake(struct usw_tiers *tiers)
{
	uint64_t one = 1;

	if (write(tiers->wake_fd, &one, sizeof(one)) < 0)
		return; // EAGAIN: it will wake anyway
}

/** What a segment's objects are in a slot: sealed, each with its tag, holes where nothing lives. */
static int fill_slot(struct usw_tiers *tiers, struct usw_move *move)
{
	struct usw_segments *segments = tiers->segments;
	uint32_t count = usw_segments_header(segments, move->segment)->object_count;
	struct usw_object object;

	for (uint32_t index = 0; index < count; index++) {
		if (!usw_segments_find(segments, move->segment, index, &object))
			continue;
		char *out = move->buffer + usw_disk_object_offset(object.offset_bytes, index);

		if (!tiers->is_sealed) {
			memcpy(out, object.bytes, object.length_bytes);
			continue;
		}
		object.where = move->to;
		struct usw_seal_bond bond = usw_tier_bond(move->segment, index, &object);
		int ret = usw_seal(&tiers->sealer, &bond, object.bytes, out);
		if (ret)
			return ret;
	}
	return 0;
}

/**
 * Ask for the next piece. What is read comes in small ones: a fault that wants one page from the same
 * disk waits behind them, and the program should not notice that a tier leaves. 0 or -errno.
 */
static int ask_piece(struct usw_tiers *tiers, struct usw_move *move)
{
	uint64_t place = move->is_write ? move->to : move->from;
	uint32_t left = move->length_bytes - move->asked_bytes;
	uint32_t length = move->is_write ? left : (uint32_t)usw_min(left, USW_PIECE_BYTES);

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

/** Take note of what the disk has done, and go on with it. */
static void collect(struct usw_tiers *tiers)
{
	struct usw_aio_request *request;

	while ((request = usw_aio_reap(tiers->aio))) {
		struct usw_move *move =
			(struct usw_move *)((char *)request - offsetof(struct usw_move, request));

		if (!request->result && move->asked_bytes < move->length_bytes) {
			int ret = ask_piece(tiers, move);

			if (!ret)
				continue;
			request->result = ret;
		}
		move->is_through = true;
	}
	usw_aio_flush(tiers->aio);
}

/**
 * The reverse, into the segment's place in RAM, which nobody reads before it is published. What
 * cannot be opened becomes zeros, which the page's hash refuses when it is asked for.
 */
static void empty_slot(struct usw_tiers *tiers, struct usw_move *move)
{
	struct usw_segments *segments = tiers->segments;
	const struct usw_segment *h = usw_segments_header(segments, move->segment);
	char *ram = segments->data.base + (uint64_t)move->segment * USW_SEGMENT_BYTES;
	struct usw_object object;

	// One call instead of a fault for each page; without it they fault.
	madvise(ram, (h->append_bytes + USW_PAGE_BYTES - 1) & ~(USW_PAGE_BYTES - 1),
		MADV_POPULATE_WRITE);
	for (uint32_t index = 0; index < h->object_count; index++) {
		if (!usw_segments_find(segments, move->segment, index, &object))
			continue;
		if (index % USW_LOOK_OBJECTS == 0)
			collect(tiers);
		const char *in = move->buffer + usw_disk_object_offset(object.offset_bytes, index);
		char *out = ram + object.offset_bytes;

		object.where = move->from;
		struct usw_seal_bond bond = usw_tier_bond(move->segment, index, &object);
		if (!tiers->is_sealed) {
			memcpy(out, in, object.length_bytes);
		} else if (usw_unseal(&tiers->sealer, &bond, in, out)) {
			memset(out, 0, object.length_bytes);
			move->damaged++;
		}
	}
}

static void finish_move(struct usw_tiers *tiers, struct usw_move *move)
{
	if (!move->is_write && move->request.result == 0)
		empty_slot(tiers, move);
	atomic_store_explicit(&move->stage, USW_MOVE_DONE, memory_order_release);
	tiers->hooks.moved(tiers->hooks.context);
}

static void begin_move(struct usw_tiers *tiers, struct usw_move *move)
{
	int ret = 0;

	if (!move->buffer) {
		void *buffer = mmap(NULL, USW_SLOT_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		ret = buffer == MAP_FAILED ? -errno : 0;
		move->buffer = ret ? NULL : buffer;
	}
	if (!ret && move->is_write)
		ret = fill_slot(tiers, move);
	move->asked_bytes = 0;
	move->is_through = false;
	atomic_store_explicit(&move->stage, USW_MOVE_RUNNING, memory_order_relaxed);
	if (!ret)
		ret = ask_piece(tiers, move);
	if (ret) {
		move->request.result = ret;
		move->is_through = true;
	}
}

/** Begin what was asked for and finish what is through. True if there was something. */
static bool serve_moves(struct usw_tiers *tiers)
{
	bool busy = false;

	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		struct usw_move *move = &tiers->moves[i];

		if (atomic_load_explicit(&move->stage, memory_order_acquire) == USW_MOVE_ASKED) {
			begin_move(tiers, move);
			usw_aio_flush(tiers->aio);
		}
	}
	collect(tiers);
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		struct usw_move *move = &tiers->moves[i];

		if (atomic_load_explicit(&move->stage, memory_order_relaxed) != USW_MOVE_RUNNING ||
		    !move->is_through)
			continue;
		finish_move(tiers, move);
		busy = true;
	}
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

void *usw_mover_main(void *argument)
{
	struct usw_tiers *tiers = argument;
	struct pollfd ready[] = {{.fd = tiers->wake_fd, .events = POLLIN},
				 {.fd = usw_aio_fd(tiers->aio), .events = POLLIN}};
	uint64_t wakes;

	while (!atomic_load(&tiers->stopping) || usw_aio_under_way(tiers->aio)) {
		bool busy = serve_moves(tiers);

		busy |= give_dead_slot(tiers);
		end_files(tiers);
		if (busy || poll(ready, 2, -1) <= 0)
			continue;
		if (ready[0].revents && read(tiers->wake_fd, &wakes, sizeof(wakes)) < 0)
			continue; // somebody's wake was taken together with an earlier one
	}
	return NULL;
}
