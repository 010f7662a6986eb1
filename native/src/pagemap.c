// SPDX-License-Identifier: MIT

/**
 * @file
 * The radix tree of page words. See pagemap.h.
 */

#include <errno.h>
#include <string.h>

#include "pagemap.h"

#define USW_FANOUT_BITS 9u
#define USW_FANOUT (1u << USW_FANOUT_BITS)
#define USW_LEVELS 4u
#define USW_ADDRESS_BITS (USW_PAGE_SHIFT + USW_LEVELS * USW_FANOUT_BITS)
/* Free nodes kept warm; the memory of any more is given back. */
#define USW_NODES_WARM 64u

void usw_page_transition(usw_page_word *word, uint64_t before, uint64_t after)
{
	static const uint8_t allowed[] = {
		[USW_PAGE_NONE] = 1 << USW_PAGE_NONE | 1 << USW_PAGE_EVICTING,
		[USW_PAGE_RESIDENT] = 1 << USW_PAGE_RESIDENT | 1 << USW_PAGE_EVICTING |
				      1 << USW_PAGE_NONE,
		[USW_PAGE_EVICTING] = 1 << USW_PAGE_NONE | 1 << USW_PAGE_RESIDENT |
				      1 << USW_PAGE_EVICTED,
		[USW_PAGE_EVICTED] = 1 << USW_PAGE_RESIDENT | 1 << USW_PAGE_POISONED |
				     1 << USW_PAGE_NONE,
		[USW_PAGE_POISONED] = 1 << USW_PAGE_NONE,
	};

	usw_assert(usw_page_state(before) <= USW_PAGE_POISONED);
	usw_assert(allowed[usw_page_state(before)] >> usw_page_state(after) & 1);
	usw_assert(usw_page_state(after) != USW_PAGE_EVICTED || usw_page_id(after) != 0);
	uint64_t found = atomic_exchange_explicit(word, after, memory_order_acq_rel);
	usw_assert(found == before);
}

int usw_nodes_create(struct usw_nodes *nodes, uint32_t capacity)
{
	*nodes = (struct usw_nodes){.capacity = capacity, .high_water = 1};
	pthread_mutex_init(&nodes->lock, NULL);
	return usw_space_create(&nodes->space, "uffdswap-pagemaps",
				(uint64_t)capacity * USW_PAGE_BYTES);
}

void usw_nodes_destroy(struct usw_nodes *nodes)
{
	usw_space_destroy(&nodes->space);
	free(nodes->free_stack);
	nodes->free_stack = NULL;
	pthread_mutex_destroy(&nodes->lock);
}

uint64_t usw_nodes_held_bytes(struct usw_nodes *nodes)
{
	return atomic_load_explicit(&nodes->used_count, memory_order_relaxed) * USW_PAGE_BYTES;
}

static _Atomic uint64_t *node_entries(const struct usw_nodes *nodes, uint32_t node)
{
	usw_assert(node > 0 && node < nodes->capacity);
	return (_Atomic uint64_t *)(nodes->space.base + (uint64_t)node * USW_PAGE_BYTES);
}

/** A node of zeros, or 0 if there is no memory. */
static uint32_t node_alloc(struct usw_nodes *nodes)
{
	uint32_t node = 0;

	pthread_mutex_lock(&nodes->lock);
	if (nodes->free_count)
		node = nodes->free_stack[--nodes->free_count];
	else if (nodes->high_water < nodes->capacity)
		node = nodes->high_water++;
	pthread_mutex_unlock(&nodes->lock);
	if (node)
		atomic_fetch_add_explicit(&nodes->used_count, 1, memory_order_relaxed);
	return node;
}

/** Caller holds nodes->lock. */
static bool grow_free_stack(struct usw_nodes *nodes)
{
	uint32_t capacity = nodes->free_capacity ? nodes->free_capacity * 2 : 1024;
	uint32_t *stack = realloc(nodes->free_stack, capacity * sizeof(*stack));

	if (!stack)
		return false;
	nodes->free_stack = stack;
	nodes->free_capacity = capacity;
	return true;
}

/** Takes back a node whose entries are all zero. */
static void node_free(struct usw_nodes *nodes, uint32_t node)
{
	pthread_mutex_lock(&nodes->lock);
	bool warm = nodes->free_count < USW_NODES_WARM;
	pthread_mutex_unlock(&nodes->lock);
	// Before it can be found: whoever takes it from the stack writes to it at once.
	if (!warm)
		usw_space_punch(&nodes->space, (uint64_t)node * USW_PAGE_BYTES, USW_PAGE_BYTES);

	pthread_mutex_lock(&nodes->lock);
	// Without memory for the stack the index is lost to this session; its page is not.
	if (nodes->free_count < nodes->free_capacity || grow_free_stack(nodes))
		nodes->free_stack[nodes->free_count++] = node;
	pthread_mutex_unlock(&nodes->lock);
	atomic_fetch_sub_explicit(&nodes->used_count, 1, memory_order_relaxed);
}

static uint32_t slot_at(uint64_t address, uint32_t level)
{
	return (uint32_t)(address >> (USW_PAGE_SHIFT + level * USW_FANOUT_BITS)) & (USW_FANOUT - 1);
}

/** Bytes of address space under one entry of a node at this level (leaf: level 0). */
static uint64_t span_bytes(uint32_t level)
{
	return (uint64_t)1 << (USW_PAGE_SHIFT + level * USW_FANOUT_BITS);
}

usw_page_word *usw_pagemap_find(const struct usw_pagemap *map, uint64_t address)
{
	uint32_t node = __atomic_load_n(&map->root, __ATOMIC_ACQUIRE);

	if (address >> USW_ADDRESS_BITS)
		return NULL;
	for (uint32_t level = USW_LEVELS - 1; node && level > 0; level--)
		node = (uint32_t)atomic_load_explicit(&node_entries(map->nodes,
								    node)[slot_at(address, level)],
						      memory_order_acquire);
	return node ? &node_entries(map->nodes, node)[slot_at(address, 0)] : NULL;
}

usw_page_word *usw_pagemap_make(struct usw_pagemap *map, uint64_t address)
{
	usw_assert(address >> USW_ADDRESS_BITS == 0);
	if (!map->root) {
		uint32_t root = node_alloc(map->nodes);

		if (!root)
			return NULL;
		__atomic_store_n(&map->root, root, __ATOMIC_RELEASE);
	}

	uint32_t node = map->root;
	for (uint32_t level = USW_LEVELS - 1; level > 0; level--) {
		_Atomic uint64_t *entry = &node_entries(map->nodes, node)[slot_at(address, level)];
		uint32_t child = (uint32_t)atomic_load_explicit(entry, memory_order_relaxed);

		if (!child) {
			child = node_alloc(map->nodes);
			if (!child)
				return NULL;
			atomic_store_explicit(entry, child, memory_order_release);
		}
		node = child;
	}
	return &node_entries(map->nodes, node)[slot_at(address, 0)];
}

/** Depth-first search for the first word that is not zero under `node`, which begins at `base`. */
static usw_page_word *next_under(const struct usw_pagemap *map, uint32_t node, uint32_t level,
				 uint64_t base, uint64_t *address, uint64_t end)
{
	_Atomic uint64_t *entries = node_entries(map->nodes, node);
	uint64_t span = span_bytes(level);
	uint32_t first = *address > base ? (uint32_t)((*address - base) / span) : 0;

	for (uint32_t i = first; i < USW_FANOUT && base + i * span < end; i++) {
		uint64_t entry = atomic_load_explicit(&entries[i], memory_order_acquire);
		usw_page_word *found;

		if (!entry)
			continue;
		if (level == 0) {
			*address = base + i * span;
			return &entries[i];
		}
		found = next_under(map, (uint32_t)entry, level - 1, base + i * span, address, end);
		if (found)
			return found;
	}
	return NULL;
}

usw_page_word *usw_pagemap_next(const struct usw_pagemap *map, uint64_t *address, uint64_t end)
{
	uint32_t root = __atomic_load_n(&map->root, __ATOMIC_ACQUIRE);

	if (!root || *address >= end)
		return NULL;
	return next_under(map, root, USW_LEVELS - 1, 0, address, end);
}

static bool is_all_zero(_Atomic uint64_t *entries)
{
	for (uint32_t i = 0; i < USW_FANOUT; i++)
		if (atomic_load_explicit(&entries[i], memory_order_relaxed))
			return false;
	return true;
}

static void prune_under(struct usw_pagemap *map, uint32_t node, uint32_t level, uint64_t base,
			uint64_t start, uint64_t end)
{
	_Atomic uint64_t *entries = node_entries(map->nodes, node);
	uint64_t span = span_bytes(level);
	uint32_t first = start > base ? (uint32_t)((start - base) / span) : 0;

	for (uint32_t i = first; i < USW_FANOUT && base + i * span < end; i++) {
		uint32_t child = (uint32_t)atomic_load_explicit(&entries[i], memory_order_relaxed);

		if (!child)
			continue;
		if (level > 1)
			prune_under(map, child, level - 1, base + i * span, start, end);
		if (is_all_zero(node_entries(map->nodes, child))) {
			atomic_store_explicit(&entries[i], 0, memory_order_release);
			node_free(map->nodes, child);
		}
	}
}

void usw_pagemap_prune(struct usw_pagemap *map, uint64_t start, uint64_t end)
{
	if (!map->root)
		return;
	prune_under(map, map->root, USW_LEVELS - 1, 0, start, end);
	if (is_all_zero(node_entries(map->nodes, map->root))) {
		uint32_t root = map->root;

		__atomic_store_n(&map->root, 0, __ATOMIC_RELEASE);
		node_free(map->nodes, root);
	}
}

uint64_t usw_pagemap_count(const struct usw_pagemap *map)
{
	uint64_t address = 0;
	uint64_t count = 0;

	while (usw_pagemap_next(map, &address, (uint64_t)1 << USW_ADDRESS_BITS)) {
		address += USW_PAGE_BYTES;
		count++;
	}
	return count;
}
