// SPDX-License-Identifier: MIT

/**
 * @file
 * Beginning moves and publishing them. See move.h.
 */

#include <stdio.h>
#include <string.h>

#include "deadslot.h"
#include "move.h"
#include "mover.h"

/* After a failure a tier is left alone for a while: shorter than the reclaim thread is patient when
   nothing else is left to give, so that one failure ends nobody. */
#define USW_RETRY_NS 50000000u
/* A disk that has failed twice is not counted on for so long after a failure. */
#define USW_DOUBT_NS 1000000000u
/* A disk that goes on failing is told of once in this time. */
#define USW_TELL_NS 60000000000u

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
	move->length_bytes = usw_disk_length(h);
	memset(move->damaged, 0, sizeof(move->damaged));
	h->is_moving = true;
	atomic_store_explicit(&move->stage, USW_MOVE_ASKED, memory_order_release);
	usw_mover_wake(tiers);
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

/** Between two tries, a disk of which every write fails looks as if it could take something. */
static bool is_doubtful(const struct usw_tier *tier, uint64_t now_ns)
{
	return atomic_load(&tier->write_failures) > 1 &&
	       now_ns - tier->write_retry_ns < USW_DOUBT_NS;
}

bool usw_tiers_have_room(struct usw_tiers *tiers)
{
	uint64_t now_ns = usw_now_ns();

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (may_write(&tiers->at[i], now_ns) && !is_doubtful(&tiers->at[i], now_ns))
			return true;
	return false;
}

/** Space on disks is taken here and nowhere else: so the highest that it ever was is known. */
static void raise_peak(struct usw_tiers *tiers)
{
	uint64_t held_bytes = 0;

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (atomic_load(&tiers->at[i].state) != USW_TIER_NONE)
			held_bytes += usw_disk_held_bytes(tiers->at[i].disk);
	if (held_bytes > atomic_load(&tiers->peak_bytes))
		atomic_store(&tiers->peak_bytes, held_bytes);
}

bool usw_move_begin_demotion(struct usw_tiers *tiers, uint32_t segment)
{
	const struct usw_segment *h = usw_segments_header(tiers->segments, segment);
	uint32_t length = usw_disk_length(h);
	struct usw_move *move = idle_move(tiers);
	uint32_t number, slot;

	while (move && (number = choose_tier(tiers))) {
		struct usw_tier *tier = &tiers->at[number];

		if (usw_disk_take(tier->disk, length, &slot) == 0) {
			uint64_t left = atomic_load(&tier->free_bytes);

			atomic_store(&tier->free_bytes, left - usw_min(left, length));
			raise_peak(tiers);
			if (usw_tiers_has_tags(tiers, h))
				usw_tags_take(&tiers->tags, segment);
			ask(tiers, move, segment, usw_where(++tiers->generation, number, slot));
			return true;
		}
		atomic_store(&tier->free_bytes, 0); // full until the next count
	}
	return false;
}

bool usw_move_begin_promotion(struct usw_tiers *tiers, uint32_t segment)
{
	struct usw_move *move = idle_move(tiers);

	if (!move)
		return false;
	uint32_t slot = usw_segments_take_ram_slot(tiers->segments);
	ask(tiers, move, segment, usw_where(++tiers->generation, USW_TIER_RAM, slot));
	return true;
}

/** What failed is tried again after a while; the user is told now and then. */
static void report_failure(struct usw_tiers *tiers, struct usw_tier *tier, bool is_write, int error)
{
	uint64_t now_ns = usw_now_ns();
	uint64_t *told_ns = is_write ? &tier->write_told_ns : &tier->read_told_ns;
	char text[200];

	if (is_write) {
		// Of those that were under way together only the first one counts.
		if (now_ns >= tier->write_retry_ns)
			atomic_fetch_add(&tier->write_failures, 1);
		tier->write_retry_ns = now_ns + USW_RETRY_NS;
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
		atomic_store(&tier->write_failures, 0);
	if (move->request.result || !live) {
		usw_deadslots_note(tiers, move->to, move->segment);
		return;
	}
	usw_segments_publish(tiers->segments, move->segment, move->to);
	atomic_fetch_add(&tiers->demoted_segments, 1);
}

/**
 * Who has a right page of what is damaged is not to take it for a copy of it. Returns how many
 * objects are.
 */
static uint32_t note_damaged(struct usw_tiers *tiers, const struct usw_move *move)
{
	uint32_t count = 0;

	for (uint32_t word = 0; word < USW_SEGMENT_OBJECTS / 64; word++) {
		for (uint64_t bits = move->damaged[word]; bits; bits &= bits - 1) {
			uint32_t index = word * 64 + (uint32_t)__builtin_ctzll(bits);
			uint32_t id = usw_segments_owner(tiers->segments, move->segment, index);

			if (id)
				tiers->hooks.damaged(tiers->hooks.context, id);
			count++;
		}
	}
	return count;
}

static void settle_promotion(struct usw_tiers *tiers, struct usw_move *move, struct usw_segment *h)
{
	struct usw_tier *tier = &tiers->at[usw_where_tier(move->from)];
	char text[200];

	if (move->request.result) {
		// Each object is still asked for by itself, and poisoned by itself, when it faults.
		report_failure(tiers, tier, false, move->request.result);
		usw_segments_give_ram_slot(tiers->segments, usw_where_slot(move->to));
		atomic_store_explicit(&h->refaults, 0, memory_order_relaxed);
		atomic_store_explicit(&h->is_recalled, false, memory_order_relaxed);
		return;
	}
	tier->read_failed = false;
	uint32_t damaged = note_damaged(tiers, move);
	if (damaged) {
		atomic_fetch_add(&tiers->damaged_objects, damaged);
		snprintf(
			text, sizeof(text),
			"disk tier %s: %u pages were damaged on the disk; a program that touches one "
			"gets SIGBUS",
			tier->name, damaged);
		tiers->hooks.report(tiers->hooks.context, USW_EVENT_WARNING, tier->id, text);
	}
	usw_segments_publish(tiers->segments, move->segment, move->to);
	atomic_store_explicit(&h->touched, tiers->segments->clock, memory_order_relaxed);
	usw_deadslots_note(tiers, move->from, move->segment);
	atomic_fetch_add(&tiers->promoted_segments, 1);
	if (usw_segment_has_garbage(h))
		tiers->to_empty++;
}

/** Publish what the mover has done. */
void usw_moves_settle(struct usw_tiers *tiers)
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

bool usw_moves_are_full(struct usw_tiers *tiers)
{
	return !idle_move(tiers);
}

struct usw_traffic usw_moves_under_way(const struct usw_tiers *tiers)
{
	struct usw_traffic traffic = {0};

	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		const struct usw_move *move = &tiers->moves[i];
		const struct usw_tier *tier =
			&tiers->at[usw_where_tier(move->is_write ? move->to : move->from)];
		bool has_failed = move->is_write ? atomic_load(&tier->write_failures) > 0
						 : tier->read_failed;

		if (atomic_load_explicit(&move->stage, memory_order_relaxed) == USW_MOVE_IDLE)
			continue;
		*(move->is_write ? &traffic.given : &traffic.taken) += move->length_bytes;
		traffic.is_hopeful |= !has_failed;
		traffic.has_parked |=
			move->is_write && !has_failed &&
			usw_segments_header(tiers->segments, move->segment)->is_parked;
	}
	return traffic;
}

uint64_t usw_moves_unwritten(const struct usw_tiers *tiers, uint32_t number)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < USW_MOVES_MAX; i++) {
		const struct usw_move *move = &tiers->moves[i];

		if (atomic_load_explicit(&move->stage, memory_order_relaxed) != USW_MOVE_IDLE &&
		    move->is_write && usw_where_tier(move->to) == number)
			bytes += move->length_bytes;
	}
	return bytes;
}
