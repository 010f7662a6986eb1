// SPDX-License-Identifier: MIT

/**
 * @file
 * Moves and tiers. See tier.h.
 */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "tier.h"
#include "uffd_abi.h"

/* How often the segments are counted, and what is free on disks is asked for. */
#define USW_SWEEP_NS 20000000u
/* After a failure a tier is left alone for a while: shorter than the reclaim thread is patient when
   nothing else is left to give, so that one failure ends nobody. */
#define USW_RETRY_NS 50000000u
/* A disk that goes on failing is told of once in this time. */
#define USW_TELL_NS 60000000000u
/* A move reads so much at a time, and looks after the disk each so many objects. */
#define USW_PIECE_BYTES 65536u
#define USW_LOOK_OBJECTS 16u
/* A segment of which this share was read one by one is wanted as a whole. */
#define USW_PROMOTE_SHARE 4u

static void wake(struct usw_tiers *tiers)
{
	uint64_t one = 1;

	if (write(tiers->wake_fd, &one, sizeof(one)) < 0)
		return; // EAGAIN: it will wake anyway
}

// --- The mover ----------------------------------------------------------------------------------

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

static void *mover_main(void *argument)
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

// --- The owner's steps --------------------------------------------------------------------------

static uint32_t slot_length(const struct usw_segment *h)
{
	return usw_disk_length(h->append_bytes, h->object_count);
}

/** Let the mover give a slot back. False: it has too many to give already. */
static bool queue_dead(struct usw_tiers *tiers, const struct usw_dead_slot *dead)
{
	pthread_mutex_lock(&tiers->lock);
	bool is_full = tiers->dead_head - tiers->dead_tail == USW_DEAD_SLOTS_MAX;
	if (!is_full)
		tiers->dead[tiers->dead_head++ % USW_DEAD_SLOTS_MAX] = *dead;
	pthread_mutex_unlock(&tiers->lock);
	if (!is_full)
		wake(tiers);
	return !is_full;
}

/**
 * A file that leaves as a whole needs no holes; to punch one waits for all reads under way, and
 * holds up those that follow. False: the slot is to be given back now.
 */
static bool hold_back(struct usw_tiers *tiers, const struct usw_dead_slot *dead)
{
	const struct usw_tier *tier = &tiers->at[dead->tier];

	if (atomic_load(&tier->state) != USW_TIER_LEAVING || tier->kind == USW_TIER_KIND_DEVICE)
		return false;
	if (tiers->held_back_count == tiers->held_back_capacity) {
		uint32_t capacity = tiers->held_back_capacity * 2 + 256;
		void *bigger = realloc(tiers->held_back, capacity * sizeof(*tiers->held_back));

		if (!bigger)
			return false;
		tiers->held_back = bigger;
		tiers->held_back_capacity = capacity;
	}
	tiers->held_back[tiers->held_back_count++] = *dead;
	return true;
}

/** The owner says that a slot holds nothing any more. */
static void slot_is_free(void *context, uint64_t where, const struct usw_segment *segment)
{
	struct usw_tiers *tiers = context;
	struct usw_dead_slot dead = {
		.tier = usw_where_tier(where),
		.slot = usw_where_slot(where),
		.length_bytes = slot_length(segment),
	};

	if (!hold_back(tiers, &dead) && !queue_dead(tiers, &dead))
		usw_disk_give(tiers->at[dead.tier].disk, dead.slot, dead.length_bytes);
}

/** Slots that were held back for a tier that leaves. */
static uint32_t count_held_back(const struct usw_tiers *tiers, uint32_t number)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < tiers->held_back_count; i++)
		count += tiers->held_back[i].tier == number;
	return count;
}

/** The file is gone, and with it its slots. */
static void drop_held_back(struct usw_tiers *tiers, uint32_t number)
{
	uint32_t left = 0;

	for (uint32_t i = 0; i < tiers->held_back_count; i++)
		if (tiers->held_back[i].tier != number)
			tiers->held_back[left++] = tiers->held_back[i];
	tiers->held_back_count = left;
}

/** Tiers that stay after all get their slots back, as fast as the mover can give them. */
static void give_held_back(struct usw_tiers *tiers)
{
	uint32_t i = 0;

	while (i < tiers->held_back_count) {
		struct usw_dead_slot *dead = &tiers->held_back[i];

		if (atomic_load(&tiers->at[dead->tier].state) == USW_TIER_LEAVING) {
			i++;
			continue;
		}
		if (!queue_dead(tiers, dead))
			return;
		*dead = tiers->held_back[--tiers->held_back_count];
	}
}

static struct usw_move *idle_move(struct usw_tiers *tiers)
{
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++)
		if (atomic_load_explicit(&tiers->moves[i].stage, memory_order_relaxed) ==
		    USW_MOVE_IDLE)
			return &tiers->moves[i];
	return NULL;
}

static void ask(struct usw_tiers *tiers, struct usw_move *move, uint32_t segment, uint64_t to)
{
	struct usw_segment *h = usw_segments_header(tiers->segments, segment);

	move->segment = segment;
	move->from = atomic_load_explicit(&h->where, memory_order_relaxed);
	move->to = to;
	move->is_write = usw_where_tier(to) != USW_TIER_RAM;
	move->length_bytes = slot_length(h);
	move->damaged = 0;
	h->is_moving = true;
	atomic_store_explicit(&move->stage, USW_MOVE_ASKED, memory_order_release);
	wake(tiers);
}

/** Bytes of all slots of a disk that are taken, and of those that are on their way back. */
static uint64_t held(struct usw_disk *disk)
{
	pthread_mutex_lock(&disk->lock);
	uint64_t bytes = disk->held_bytes;
	pthread_mutex_unlock(&disk->lock);
	return bytes;
}

static bool may_write(const struct usw_tier *tier, uint64_t now_ns)
{
	return atomic_load(&tier->state) == USW_TIER_ACTIVE && now_ns >= tier->write_retry_ns &&
	       atomic_load(&tier->free_bytes) >= USW_SLOT_BYTES;
}

static bool is_before(const struct usw_tier *tier, const struct usw_tier *other)
{
	return tier->priority != other->priority ? tier->priority > other->priority
						 : tier->id < other->id;
}

/** The tier to write to: the highest priority with room, then the oldest; 0: none. */
static uint32_t choose_tier(struct usw_tiers *tiers)
{
	uint64_t now_ns = usw_now_ns();
	uint32_t best = 0;

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (may_write(&tiers->at[i], now_ns) &&
		    (!best || is_before(&tiers->at[i], &tiers->at[best])))
			best = i;
	return best;
}

bool usw_tiers_have_room(struct usw_tiers *tiers)
{
	return choose_tier(tiers) != 0;
}

/** Space on disks is taken here and nowhere else: so the highest that it ever was is known. */
static void raise_peak(struct usw_tiers *tiers)
{
	uint64_t held_bytes = 0;

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (atomic_load(&tiers->at[i].state) != USW_TIER_NONE)
			held_bytes += held(tiers->at[i].disk);
	if (held_bytes > atomic_load(&tiers->peak_bytes))
		atomic_store(&tiers->peak_bytes, held_bytes);
}

static bool begin_demotion(struct usw_tiers *tiers, uint32_t segment)
{
	uint32_t length = slot_length(usw_segments_header(tiers->segments, segment));
	struct usw_move *move = idle_move(tiers);
	uint32_t number, slot;

	while (move && (number = choose_tier(tiers))) {
		struct usw_tier *tier = &tiers->at[number];

		if (usw_disk_take(tier->disk, length, &slot) == 0) {
			uint64_t left = atomic_load(&tier->free_bytes);

			atomic_store(&tier->free_bytes, left - usw_min(left, length));
			raise_peak(tiers);
			ask(tiers, move, segment, usw_where(++tiers->generation, number, slot));
			return true;
		}
		atomic_store(&tier->free_bytes, 0); // full until the next count
	}
	return false;
}

static bool begin_promotion(struct usw_tiers *tiers, uint32_t segment)
{
	struct usw_move *move = idle_move(tiers);

	if (!move)
		return false;
	ask(tiers, move, segment, usw_where(++tiers->generation, USW_TIER_RAM, 0));
	return true;
}

/** What failed is tried again after a while; the user is told now and then. */
static void report_failure(struct usw_tiers *tiers, struct usw_tier *tier, bool is_write, int error)
{
	uint64_t now_ns = usw_now_ns();
	uint64_t *told_ns = is_write ? &tier->write_told_ns : &tier->read_told_ns;
	char text[200];

	if (is_write) {
		tier->write_retry_ns = now_ns + USW_RETRY_NS;
		atomic_store(&tier->write_failed, true);
	} else {
		atomic_store(&tier->read_retry_ns, now_ns + USW_RETRY_NS);
		tier->read_failed = true;
	}
	if (*told_ns && now_ns - *told_ns < USW_TELL_NS)
		return;
	*told_ns = now_ns;
	snprintf(text, sizeof(text),
		 "disk tier %s: a %s failed (%s); its pages stay %s, and it is tried again",
		 tier->name, is_write ? "write" : "read", strerror(-error),
		 is_write ? "in RAM" : "there");
	tiers->hooks.report(tiers->hooks.context, USW_EVENT_WARNING, tier->id, text);
}

static void settle_demotion(struct usw_tiers *tiers, struct usw_move *move, struct usw_segment *h)
{
	uint32_t number = usw_where_tier(move->to);
	struct usw_tier *tier = &tiers->at[number];
	uint32_t live = atomic_load_explicit(&h->live_count, memory_order_relaxed);

	if (move->request.result)
		report_failure(tiers, tier, true, move->request.result);
	else
		atomic_store(&tier->write_failed, false);
	if (move->request.result || !live) {
		slot_is_free(tiers, move->to, h);
		return;
	}
	usw_segments_publish(tiers->segments, move->segment, move->to);
	atomic_fetch_add(&tiers->demoted_segments, 1);
	atomic_fetch_add(&tiers->demoted_objects, live);
}

static void settle_promotion(struct usw_tiers *tiers, struct usw_move *move, struct usw_segment *h)
{
	struct usw_tier *tier = &tiers->at[usw_where_tier(move->from)];
	char text[200];

	if (move->request.result) {
		// Each object is still asked for by itself, and poisoned by itself, when it faults.
		report_failure(tiers, tier, false, move->request.result);
		atomic_store_explicit(&h->refaults, 0, memory_order_relaxed);
		atomic_store_explicit(&h->is_recalled, false, memory_order_relaxed);
		return;
	}
	tier->read_failed = false;
	if (move->damaged) {
		atomic_fetch_add(&tiers->damaged_objects, move->damaged);
		snprintf(
			text, sizeof(text),
			"disk tier %s: %u pages were damaged on the disk; a program that touches one "
			"gets SIGBUS",
			tier->name, move->damaged);
		tiers->hooks.report(tiers->hooks.context, USW_EVENT_WARNING, tier->id, text);
	}
	usw_segments_publish(tiers->segments, move->segment, move->to);
	atomic_store_explicit(&h->touched, tiers->segments->clock, memory_order_relaxed);
	slot_is_free(tiers, move->from, h);
	atomic_fetch_add(&tiers->promoted_segments, 1);
	if (usw_segment_has_garbage(h))
		tiers->to_empty++;
}

/** Publish what the mover has done. */
static void settle(struct usw_tiers *tiers)
{
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		struct usw_move *move = &tiers->moves[i];
		struct usw_segment *h;

		if (atomic_load_explicit(&move->stage, memory_order_acquire) != USW_MOVE_DONE)
			continue;
		h = usw_segments_header(tiers->segments, move->segment);
		h->is_moving = false;
		if (move->is_write)
			settle_demotion(tiers, move, h);
		else
			settle_promotion(tiers, move, h);
		// It was passed over while it moved.
		if (atomic_load(&h->live_count) == 0)
			atomic_store(&tiers->segments->some_empty, true);
		atomic_store_explicit(&move->stage, USW_MOVE_IDLE, memory_order_relaxed);
	}
}

/** Bytes of RAM that moves under way will give or take. */
struct traffic {
	uint64_t given, taken;
	bool is_hopeful; /* a move among them is not just a try after a failure */
};

static struct traffic under_way(const struct usw_tiers *tiers)
{
	struct traffic traffic = {0};

	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		const struct usw_move *move = &tiers->moves[i];
		const struct usw_tier *tier =
			&tiers->at[usw_where_tier(move->is_write ? move->to : move->from)];

		if (atomic_load_explicit(&move->stage, memory_order_relaxed) == USW_MOVE_IDLE)
			continue;
		*(move->is_write ? &traffic.given : &traffic.taken) += move->length_bytes;
		traffic.is_hopeful |= !(move->is_write ? tier->write_failed : tier->read_failed);
	}
	return traffic;
}

void usw_tiers_count(struct usw_tiers *tiers)
{
	uint64_t segments[16] = {0}, pages[16] = {0}, stored_bytes[16] = {0}, live_bytes = 0;

	for (uint32_t i = 1; i < tiers->segments->high_water; i++) {
		struct usw_segment *h = usw_segments_header(tiers->segments, i);
		uint32_t number = usw_where_tier(atomic_load(&h->where));

		if (atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_FREE ||
		    number == USW_TIER_RAM)
			continue;
		segments[number]++;
		stored_bytes[number] += slot_length(h);
		pages[number] += atomic_load_explicit(&h->live_count, memory_order_relaxed);
		live_bytes += atomic_load_explicit(&h->live_bytes, memory_order_relaxed);
	}
	tiers->segments->disk_live_bytes = live_bytes;
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_tier *tier = &tiers->at[i];

		if (atomic_load(&tier->state) == USW_TIER_NONE)
			continue;
		atomic_store(&tier->free_bytes, usw_disk_free_bytes(tier->disk));
		atomic_store(&tier->segments, segments[i]);
		atomic_store(&tier->pages, pages[i]);
		atomic_store(&tier->stored_bytes, stored_bytes[i]);
	}
}

enum wish { STAYS, WANTED, LEAVES, NEEDED };

/**
 * A segment should come back if it is read again and again, one object at a time; it must if its
 * tier is to go, if it was asked for as a whole, or if so much of it is garbage that it is to be
 * emptied into another.
 */
static enum wish wish_of(struct usw_tiers *tiers, const struct usw_segment *h, uint64_t now_ns)
{
	uint32_t number = usw_where_tier(atomic_load_explicit(&h->where, memory_order_relaxed));
	const struct usw_tier *tier = &tiers->at[number];

	if (atomic_load_explicit(&h->state, memory_order_relaxed) != USW_SEGMENT_CLOSED ||
	    number == USW_TIER_RAM || h->is_moving || !usw_tier_may_read(tier, now_ns))
		return STAYS;
	if (usw_segment_has_garbage(h) ||
	    atomic_load_explicit(&h->is_recalled, memory_order_relaxed))
		return NEEDED;
	if (atomic_load(&tiers->at[number].state) == USW_TIER_LEAVING)
		return LEAVES;
	return atomic_load_explicit(&h->refaults, memory_order_relaxed) >
			       h->object_count / USW_PROMOTE_SHARE
		       ? WANTED
		       : STAYS;
}

/**
 * Bring segments back, in the order in which they lie in the table. One that is needed comes even
 * without room, alone, since it makes room by being emptied; one that leaves does too, but for when
 * RAM is tight, since it makes others go down elsewhere or pages leave.
 */
static void promote_some(struct usw_tiers *tiers, const struct usw_tiers_plan *plan,
			 uint64_t taken_bytes)
{
	uint32_t end = tiers->segments->high_water;
	uint64_t now_ns = usw_now_ns();

	for (uint32_t looked = 1; looked < end; looked++) {
		if (tiers->waiting_segment < 1 || tiers->waiting_segment >= end)
			tiers->waiting_segment = 1;
		uint32_t segment = tiers->waiting_segment;
		struct usw_segment *h = usw_segments_header(tiers->segments, segment);

		enum wish wish = wish_of(tiers, h, now_ns);
		bool has_room = taken_bytes + USW_SEGMENT_BYTES <= plan->promote_bytes;
		bool is_urgent = wish == NEEDED || (wish == LEAVES && !plan->is_tight);

		if (wish != STAYS && (has_room || (is_urgent && !taken_bytes))) {
			if (!begin_promotion(tiers, segment))
				return;
			taken_bytes += USW_SEGMENT_BYTES;
		}
		tiers->waiting_segment++;
	}
}

/** True if a tier that leaves is empty, and its file as well. */
static bool has_left(struct usw_tiers *tiers, uint32_t number)
{
	struct usw_tier *tier = &tiers->at[number];

	if (atomic_load(&tier->state) != USW_TIER_LEAVING)
		return false;
	pthread_mutex_lock(&tier->disk->lock);
	uint32_t used = tier->disk->used_slots;
	pthread_mutex_unlock(&tier->disk->lock);
	uint32_t held_back = count_held_back(tiers, number);
	if (used != held_back)
		return false;
	if (held_back && atomic_load(&tier->ending) == USW_ENDING_NOT) {
		atomic_store_explicit(&tier->ending, USW_ENDING_ASKED, memory_order_release);
		wake(tiers);
	}
	return !held_back ||
	       atomic_load_explicit(&tier->ending, memory_order_acquire) == USW_ENDING_DONE;
}

/** A tier that is empty and leaves is gone. */
static void close_leaving(struct usw_tiers *tiers)
{
	char text[100];

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_tier *tier = &tiers->at[i];

		if (!has_left(tiers, i))
			continue;
		drop_held_back(tiers, i);
		snprintf(text, sizeof(text), "disk tier %s is removed", tier->name);
		uint32_t id = tier->id; // once it is gone, another may have its place
		atomic_store(&tier->fd, -1);
		pthread_mutex_lock(&tiers->lock); // the control thread may be looking at it
		usw_disk_close(tier->disk);
		atomic_store(&tier->segments, 0);
		atomic_store(&tier->pages, 0);
		atomic_store(&tier->stored_bytes, 0);
		atomic_store(&tier->state, USW_TIER_NONE);
		pthread_mutex_unlock(&tiers->lock);
		atomic_fetch_sub(&tiers->count, 1);
		tiers->hooks.report(tiers->hooks.context, USW_EVENT_TIER_REMOVED, id, text);
	}
}

void usw_tiers_keep_leaving(struct usw_tiers *tiers)
{
	char text[200];

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_tier *tier = &tiers->at[i];
		uint32_t leaving = USW_TIER_LEAVING;

		// One whose file is being ended holds nothing any more.
		if (atomic_load(&tier->ending) != USW_ENDING_NOT ||
		    !atomic_compare_exchange_strong(&tier->state, &leaving, USW_TIER_ACTIVE))
			continue;
		snprintf(text, sizeof(text),
			 "disk tier %s stays: what is left has no room any more for what it holds",
			 tier->name);
		tiers->hooks.report(tiers->hooks.context, USW_EVENT_TIER_KEPT, tier->id, text);
	}
}

/** Send segments down: those that are parked first, then the coldest. */
static void demote_some(struct usw_tiers *tiers, const struct usw_tiers_plan *plan)
{
	for (;;) {
		bool is_enough = plan->demote_bytes <= under_way(tiers).given;
		uint32_t segment = 0;

		if (plan->demote_parked)
			segment = usw_segments_parked(tiers->segments);
		if (!segment && !is_enough)
			segment = usw_segments_coldest(tiers->segments, USW_TIER_RAM);
		if (!segment || !begin_demotion(tiers, segment))
			return;
	}
}

bool usw_tiers_step(struct usw_tiers *tiers, const struct usw_tiers_plan *plan)
{
	if (!atomic_load(&tiers->count))
		return false;
	settle(tiers);
	if (usw_now_ns() - tiers->swept_ns > USW_SWEEP_NS) {
		tiers->swept_ns = usw_now_ns();
		usw_tiers_count(tiers);
		close_leaving(tiers);
		give_held_back(tiers);
	}
	demote_some(tiers, plan);
	if (tiers->segments->disk_segments)
		promote_some(tiers, plan, under_way(tiers).taken);
	return under_way(tiers).is_hopeful;
}

// --- Adding and removing ------------------------------------------------------------------------

static int fail(struct usw_error *error, int code, const char *format, const char *name)
{
	error->code = code;
	snprintf(error->text, sizeof(error->text), format, name);
	return -code;
}

/** Key, queue and mover: with the first tier, since most sessions never need them. */
static int make_ready(struct usw_tiers *tiers)
{
	if (tiers->is_ready)
		return 0;
	int ret = tiers->is_sealed ? usw_seal_key_create(&tiers->key, usw_seal_choose_cipher()) : 0;
	if (!ret && tiers->is_sealed)
		ret = usw_sealer_init(&tiers->sealer, &tiers->key);
	if (!ret)
		ret = usw_aio_create(USW_MOVES_MAX, USW_AIO_URING, &tiers->aio);
	if (ret)
		goto undo;
	usw_aio_inject(tiers->aio, tiers->injection);
	atomic_store(&tiers->aio_engine, usw_aio_engine(tiers->aio));
	ret = -pthread_create(&tiers->mover, NULL, mover_main, tiers);
	if (ret)
		goto undo;
	pthread_setname_np(tiers->mover, "uffdswap-mover");
	tiers->is_ready = true;
	return 0;
undo:
	usw_aio_destroy(tiers->aio);
	tiers->aio = NULL;
	usw_sealer_deinit(&tiers->sealer);
	usw_seal_key_destroy(&tiers->key);
	return ret;
}

/** Caller is the control thread, which alone adds tiers, and holds tiers->lock. */
static struct usw_tier *find_tier(struct usw_tiers *tiers, const char *name)
{
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (atomic_load(&tiers->at[i].state) != USW_TIER_NONE &&
		    (strcmp(tiers->at[i].name, name) == 0 ||
		     strcmp(tiers->at[i].disk->path, name) == 0))
			return &tiers->at[i];
	return NULL;
}

/** Neither path nor name may be in use. Caller holds tiers->lock. */
static int refuse_double(struct usw_tiers *tiers, const char *path, const char *name,
			 struct usw_error *error)
{
	const struct usw_tier *tier = find_tier(tiers, path);

	if (tier && atomic_load(&tier->state) == USW_TIER_LEAVING)
		return fail(error, EEXIST, "%.120s is a disk tier that is just being removed",
			    path);
	if (tier)
		return fail(error, EEXIST,
			    "%.120s is a disk tier already; `uffdswap tier list` names them", path);
	if (name && (strcmp(name, "ram") == 0 || find_tier(tiers, name)))
		return fail(error, EEXIST,
			    "there is a tier %.31s already; `uffdswap tier list` names them", name);
	return 0;
}

/** A number that is free; 0: there is none. */
static uint32_t find_number(struct usw_tiers *tiers)
{
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (atomic_load(&tiers->at[i].state) == USW_TIER_NONE)
			return i;
	return 0;
}

/** `name`, or the first of disk1, disk2, ... that is free. Caller holds tiers->lock. */
static void give_name(struct usw_tiers *tiers, struct usw_tier *tier, const char *name)
{
	if (name) {
		snprintf(tier->name, sizeof(tier->name), "%s", name);
		return;
	}
	for (uint32_t i = 1;; i++) {
		char next[sizeof(tier->name)];

		snprintf(next, sizeof(next), "disk%u", i);
		if (find_tier(tiers, next))
			continue;
		strcpy(tier->name, next);
		return;
	}
}

static enum usw_tier_kind kind_of(const struct usw_disk *disk)
{
	struct stat status;

	if (disk->is_device)
		return USW_TIER_KIND_DEVICE;
	// The nameless file in a folder has no link.
	return fstat(disk->fd, &status) == 0 && status.st_nlink == 0 ? USW_TIER_KIND_FOLDER
								     : USW_TIER_KIND_FILE;
}

int usw_tiers_add(struct usw_tiers *tiers, const char *path, const char *name, uint64_t cap_bytes,
		  int priority, struct usw_error *error)
{
	pthread_mutex_lock(&tiers->lock);
	int ret = refuse_double(tiers, path, name, error);
	pthread_mutex_unlock(&tiers->lock);
	uint32_t number = find_number(tiers);

	if (ret)
		return ret;
	if (!number)
		return fail(error, ENOSPC,
			    "cannot add %.80s: there are as many tiers as there may be", path);
	struct usw_tier *tier = &tiers->at[number];
	if (!tier->disk)
		tier->disk = calloc(1, sizeof(*tier->disk));
	ret = tier->disk ? make_ready(tiers) : -ENOMEM;
	if (ret)
		return fail(error, -ret, "cannot start the disk tier: %s", strerror(-ret));
	ret = usw_disk_open(tier->disk, path, cap_bytes, error);
	if (ret)
		return ret;
	atomic_store(&tier->free_bytes, usw_disk_free_bytes(tier->disk));
	tier->priority = priority;
	tier->write_retry_ns = 0;
	atomic_store(&tier->read_retry_ns, 0);
	atomic_store(&tier->write_failed, false);
	tier->read_failed = false;
	tier->write_told_ns = tier->read_told_ns = 0;
	atomic_store(&tier->ending, USW_ENDING_NOT);
	atomic_store(&tier->align_bytes, tier->disk->align_bytes);
	atomic_store(&tier->fd, tier->disk->fd);
	pthread_mutex_lock(&tiers->lock);
	tier->id = ++tiers->added_count;
	tier->kind = kind_of(tier->disk);
	give_name(tiers, tier, name);
	atomic_store(&tier->state, USW_TIER_ACTIVE);
	pthread_mutex_unlock(&tiers->lock);
	atomic_fetch_add(&tiers->count, 1);
	return (int)tier->id;
}

/** What the other disks could take. */
static uint64_t free_elsewhere(struct usw_tiers *tiers, const struct usw_tier *leaving)
{
	uint64_t bytes = 0;

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (&tiers->at[i] != leaving && atomic_load(&tiers->at[i].state) == USW_TIER_ACTIVE)
			bytes += usw_disk_free_bytes(tiers->at[i].disk);
	return bytes;
}

/** Caller holds tiers->lock, so that no tier is closed meanwhile. */
static int begin_removal(struct usw_tiers *tiers, const char *name, uint64_t ram_free_bytes,
			 struct usw_error *error)
{
	struct usw_tier *tier = find_tier(tiers, name);

	if (!tier)
		return fail(error, ENOENT,
			    "there is no disk tier %.80s; `uffdswap tier list` names them", name);
	if (atomic_load(&tier->state) == USW_TIER_LEAVING)
		return fail(error, EALREADY, "disk tier %s is being removed already", tier->name);
	uint64_t needed = held(tier->disk);
	uint64_t left = free_elsewhere(tiers, tier);
	if (ram_free_bytes < needed && left < needed - ram_free_bytes) {
		error->code = ENOSPC;
		snprintf(
			error->text, sizeof(error->text),
			"disk tier %s holds %llu MiB, and what is left has room for %llu; nothing was "
			"moved. Raise --memory or add a tier first",
			tier->name, (unsigned long long)(needed >> 20),
			(unsigned long long)((ram_free_bytes + left) >> 20));
		return -ENOSPC;
	}
	atomic_store(&tier->state, USW_TIER_LEAVING);
	return (int)tier->id;
}

int usw_tiers_remove(struct usw_tiers *tiers, const char *name, uint64_t ram_free_bytes,
		     struct usw_error *error)
{
	pthread_mutex_lock(&tiers->lock);
	int ret = begin_removal(tiers, name, ram_free_bytes, error);
	pthread_mutex_unlock(&tiers->lock);
	if (ret > 0)
		tiers->hooks.moved(tiers->hooks.context);
	return ret;
}

static enum usw_tier_condition condition_of(const struct usw_tier *tier)
{
	if (atomic_load(&tier->state) == USW_TIER_LEAVING)
		return USW_TIER_IS_LEAVING;
	if (atomic_load(&tier->write_failed))
		return USW_TIER_IS_FAILING;
	return atomic_load(&tier->free_bytes) < USW_SLOT_BYTES ? USW_TIER_IS_FULL
							       : USW_TIER_IS_ACTIVE;
}

int usw_tiers_describe(struct usw_tiers *tiers, uint32_t number, struct usw_tier_info *ret)
{
	struct usw_tier *tier = &tiers->at[number];
	int found = 0;

	// Under the lock a tier that leaves cannot be closed.
	pthread_mutex_lock(&tiers->lock);
	if (atomic_load(&tier->state) != USW_TIER_NONE) {
		*ret = (struct usw_tier_info){
			.id = tier->id,
			.kind = tier->kind,
			.condition = condition_of(tier),
			.priority = tier->priority,
			.is_encrypted = tiers->is_sealed,
			.cap_bytes = tier->disk->cap_bytes,
			.free_bytes = atomic_load(&tier->free_bytes),
			.segments = atomic_load(&tier->segments),
			.pages = atomic_load(&tier->pages),
			.original_bytes = atomic_load(&tier->pages) * USW_PAGE_BYTES,
			.stored_bytes = atomic_load(&tier->stored_bytes),
		};
		strcpy(ret->name, tier->name);
		strcpy(ret->path, tier->disk->path);
		found = 1;
	}
	pthread_mutex_unlock(&tiers->lock);
	return found;
}

// --- Beginning and end --------------------------------------------------------------------------

int usw_tiers_init(struct usw_tiers *tiers, struct usw_segments *segments, bool is_sealed,
		   const struct usw_tiers_hooks *hooks)
{
	tiers->segments = segments;
	tiers->is_sealed = is_sealed;
	tiers->hooks = *hooks;
	for (uint32_t i = 0; i < USW_TIERS_MAX; i++)
		atomic_store(&tiers->at[i].fd, -1);
	pthread_mutex_init(&tiers->lock, NULL);
	segments->slot_is_free = slot_is_free;
	segments->slot_context = tiers;
	tiers->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return tiers->wake_fd < 0 ? -errno : 0;
}

void usw_tiers_deinit(struct usw_tiers *tiers)
{
	if (!tiers->segments)
		return;
	if (tiers->is_ready) {
		atomic_store(&tiers->stopping, true);
		wake(tiers);
		pthread_join(tiers->mover, NULL);
		usw_aio_destroy(tiers->aio);
		usw_sealer_deinit(&tiers->sealer);
		usw_seal_key_destroy(&tiers->key);
	}
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++)
		if (tiers->moves[i].buffer)
			munmap(tiers->moves[i].buffer, USW_SLOT_BYTES);
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		if (atomic_load(&tiers->at[i].state) != USW_TIER_NONE)
			usw_disk_close(tiers->at[i].disk);
		free(tiers->at[i].disk);
	}
	free(tiers->held_back);
	usw_cleanup_close(&tiers->wake_fd);
	pthread_mutex_destroy(&tiers->lock);
	tiers->segments = NULL;
}
