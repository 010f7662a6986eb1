// SPDX-License-Identifier: MIT

/**
 * @file
 * Descriptors: allocation by one owner, references by anybody. See vswap.h.
 *
 * IDs are handed out lowest block first, so that the table stays dense; a block (256 descriptors,
 * one page) without a live ID gives its memory back.
 */

#include <errno.h>
#include <string.h>

#include "vswap.h"

#define USW_BLOCK_IDS 256u
#define USW_WORD_MOVE ((uint64_t)1 << 20)
#define USW_WORD_MOVES ((uint64_t)0xf << 20)

static struct usw_descriptor *descriptor(const struct usw_vswap *vswap, uint32_t id)
{
	usw_assert(id != USW_VSWAP_NONE && id < vswap->capacity);
	return (struct usw_descriptor *)vswap->space.base + id;
}

static uint64_t make_word(enum usw_backend backend, uint64_t place, uint32_t count)
{
	usw_assert(place < (uint64_t)1 << 40);
	return place << 24 | (uint64_t)count << 3 | backend;
}

int usw_vswap_create(struct usw_vswap *vswap, struct usw_segments *segments, uint32_t capacity)
{
	uint32_t blocks = capacity / USW_BLOCK_IDS;

	usw_assert(blocks > 0 && capacity % USW_BLOCK_IDS == 0);
	*vswap = (struct usw_vswap){.segments = segments, .capacity = capacity};
	vswap->used = calloc(blocks, sizeof(*vswap->used));
	vswap->block_used = calloc(blocks, sizeof(*vswap->block_used));
	int ret = vswap->used && vswap->block_used ? 0 : -ENOMEM;
	if (!ret)
		ret = usw_space_create(&vswap->space, "uffdswap-descriptors",
				       (uint64_t)capacity * sizeof(struct usw_descriptor));
	if (ret) {
		free(vswap->used);
		free(vswap->block_used);
		*vswap = (struct usw_vswap){0};
	}
	return ret;
}

void usw_vswap_destroy(struct usw_vswap *vswap)
{
	usw_space_destroy(&vswap->space);
	free(vswap->used);
	free(vswap->block_used);
	vswap->used = NULL;
	vswap->block_used = NULL;
}

/** The lowest free ID, or USW_VSWAP_NONE. */
static uint32_t take_id(struct usw_vswap *vswap)
{
	for (uint32_t block = vswap->block_hint; block < vswap->capacity / USW_BLOCK_IDS; block++) {
		if (vswap->block_used[block] == USW_BLOCK_IDS)
			continue;
		if (block >= vswap->block_count)
			vswap->block_count = block + 1;
		vswap->block_hint = block;
		if (block == 0)
			vswap->used[0][0] |= 1; // ID 0 means "none" and is never handed out
		for (uint32_t i = 0; i < 4; i++) {
			uint64_t bits = ~vswap->used[block][i];

			if (!bits)
				continue;
			uint32_t bit = (uint32_t)__builtin_ctzll(bits);

			vswap->used[block][i] |= (uint64_t)1 << bit;
			if (vswap->block_used[block]++ == 0)
				vswap->blocks_held++;
			return block * USW_BLOCK_IDS + i * 64 + bit;
		}
		// Only block 0 gets here: its reserved ID is not counted in block_used.
		usw_assert(block == 0);
	}
	return USW_VSWAP_NONE;
}

int usw_vswap_alloc(struct usw_vswap *vswap, enum usw_backend backend, uint64_t place,
		    uint64_t hash, uint32_t *ret_id)
{
	usw_assert(backend != USW_BACKEND_FREE);

	uint32_t id = take_id(vswap);
	if (id == USW_VSWAP_NONE)
		return -ENOSPC;

	struct usw_descriptor *d = descriptor(vswap, id);
	usw_assert(atomic_load_explicit(&d->word, memory_order_relaxed) == 0);
	atomic_store_explicit(&d->hash, hash, memory_order_relaxed);
	atomic_store_explicit(&d->word, make_word(backend, place, 1), memory_order_release);
	atomic_fetch_add_explicit(&vswap->live_count, 1, memory_order_relaxed);
	*ret_id = id;
	return 0;
}

void usw_vswap_get(struct usw_vswap *vswap, uint32_t id)
{
	struct usw_descriptor *d = descriptor(vswap, id);
	uint64_t word = atomic_load_explicit(&d->word, memory_order_relaxed);

	do {
		usw_assert(usw_word_backend(word) != USW_BACKEND_FREE && usw_word_count(word) > 0);
		if (usw_word_count(word) == USW_VSWAP_COUNT_MAX)
			return;
	} while (!atomic_compare_exchange_weak_explicit(
		&d->word, &word, word + (1u << 3), memory_order_relaxed, memory_order_relaxed));
}

uint64_t usw_vswap_peek(const struct usw_vswap *vswap, uint32_t id)
{
	// A look at a block that was given back would make the kernel grant it again.
	if (id == USW_VSWAP_NONE || id >= vswap->capacity ||
	    vswap->block_used[id / USW_BLOCK_IDS] == 0)
		return 0;
	return usw_vswap_word(vswap, id);
}

bool usw_vswap_get_equal(struct usw_vswap *vswap, uint32_t id, uint64_t hash, uint32_t count_max)
{
	struct usw_descriptor *d = descriptor(vswap, id);
	uint64_t word = usw_vswap_peek(vswap, id);

	usw_assert(count_max <= USW_VSWAP_COUNT_MAX);
	do {
		// A put that has made it free writes a link over the hash, and the exchange fails.
		if (usw_word_backend(word) == USW_BACKEND_FREE ||
		    usw_word_count(word) >= count_max || usw_vswap_hash(vswap, id) != hash)
			return false;
	} while (!atomic_compare_exchange_weak_explicit(
		&d->word, &word, word + (1u << 3), memory_order_acquire, memory_order_acquire));
	return true;
}

/** Hand a dead ID to the owner. The hash is free to carry the link. */
static void push_freed(struct usw_vswap *vswap, struct usw_descriptor *d, uint32_t id)
{
	uint32_t head = atomic_load_explicit(&vswap->freed_head, memory_order_relaxed);

	do {
		atomic_store_explicit(&d->hash, head, memory_order_relaxed);
	} while (!atomic_compare_exchange_weak_explicit(
		&vswap->freed_head, &head, id, memory_order_release, memory_order_relaxed));
}

void usw_vswap_put(struct usw_vswap *vswap, uint32_t id)
{
	struct usw_descriptor *d = descriptor(vswap, id);
	uint64_t word = atomic_load_explicit(&d->word, memory_order_relaxed);
	uint64_t next;

	do {
		usw_assert(usw_word_backend(word) != USW_BACKEND_FREE && usw_word_count(word) > 0);
		if (usw_word_count(word) == USW_VSWAP_COUNT_MAX)
			return;
		next = usw_word_count(word) == 1 ? 0 : word - (1u << 3);
	} while (!atomic_compare_exchange_weak_explicit(&d->word, &word, next, memory_order_acq_rel,
							memory_order_relaxed));
	if (next)
		return;

	// A standby slot needs no word: its queue finds out that nobody refers to it any more.
	if (usw_word_backend(word) == USW_BACKEND_OBJECT) {
		uint64_t place = usw_word_place(word);

		usw_segments_release(vswap->segments, usw_place_group(place),
				     usw_place_index(place));
	}
	atomic_fetch_sub_explicit(&vswap->live_count, 1, memory_order_relaxed);
	push_freed(vswap, d, id);
}

bool usw_vswap_repoint(struct usw_vswap *vswap, uint32_t id, enum usw_backend backend,
		       uint64_t place, enum usw_backend new_backend, uint64_t new_place)
{
	struct usw_descriptor *d = descriptor(vswap, id);
	uint64_t word = atomic_load_explicit(&d->word, memory_order_relaxed);
	uint64_t next;

	do {
		if (usw_word_backend(word) != backend || usw_word_place(word) != place)
			return false;
		next = make_word(new_backend, new_place, usw_word_count(word));
		next |= ((word + USW_WORD_MOVE) & USW_WORD_MOVES) | (word & USW_WORD_DAMAGED);
	} while (!atomic_compare_exchange_weak_explicit(&d->word, &word, next, memory_order_release,
							memory_order_relaxed));
	return true;
}

void usw_vswap_note_damaged(struct usw_vswap *vswap, uint32_t id)
{
	struct usw_descriptor *d = descriptor(vswap, id);
	uint64_t word = atomic_load_explicit(&d->word, memory_order_relaxed);

	do {
		if (usw_word_backend(word) == USW_BACKEND_FREE)
			return;
	} while (!atomic_compare_exchange_weak_explicit(&d->word, &word, word | USW_WORD_DAMAGED,
							memory_order_relaxed,
							memory_order_relaxed));
}

static void give_back_id(struct usw_vswap *vswap, uint32_t id)
{
	uint32_t block = id / USW_BLOCK_IDS;
	uint64_t bit = (uint64_t)1 << (id % 64);
	uint64_t *used = &vswap->used[block][id % USW_BLOCK_IDS / 64];

	usw_assert(*used & bit);
	*used &= ~bit;
	if (block < vswap->block_hint)
		vswap->block_hint = block;
	if (--vswap->block_used[block] == 0) {
		vswap->blocks_held--;
		usw_space_punch(&vswap->space, (uint64_t)block * USW_PAGE_BYTES, USW_PAGE_BYTES);
	}
}

void usw_vswap_collect(struct usw_vswap *vswap)
{
	if (atomic_load_explicit(&vswap->freed_head, memory_order_relaxed) == 0)
		return;

	uint32_t id = atomic_exchange_explicit(&vswap->freed_head, 0, memory_order_acquire);
	while (id != USW_VSWAP_NONE) {
		uint32_t next = (uint32_t)usw_vswap_hash(vswap, id);

		give_back_id(vswap, id);
		id = next;
	}
}

uint64_t usw_vswap_held_bytes(const struct usw_vswap *vswap)
{
	return vswap->blocks_held * USW_PAGE_BYTES;
}
