// SPDX-License-Identifier: MIT

/**
 * @file
 * The data structures of the data plane behind a pipe, so that a test in another language can drive
 * them and compare them with a plain dictionary. Not a test by itself.
 *
 * It does with page maps, descriptors, standby and segments what the fault thread and the reclaim
 * thread do, without a userfaultfd: pages come in with the request, and go out with the answer.
 * Requests are lines of a word and numbers; pages follow as they are, 4096 bytes each. Every
 * request is answered by one line, "ok ..." or "no <reason>", and what it announces. At end of file
 * everything is dropped, and what is left must be nothing.
 *
 *   target                        a new target: ok <target>
 *   evict T ADDRESS COUNT  pages  ok <letter a page>: z(ero) s(ame) m(emory) c(lean) e(qual)
 *                                 n(o room)
 *   fault T ADDRESS KEEP          ok, then the page; or: ok poisoned
 *   drop T ADDRESS                give up a kept copy
 *   corrupt T ADDRESS             damage what is stored of a page: ok <whether there was anything>
 *   forge T ADDRESS        page   what is stored of a page claims the hash of this one, and is
 *                                 noted: ok <whether there was anything>
 *   fork T                        ok <target>
 *   unmap T START END
 *   remap T FROM TO BYTES
 *   exit T
 *   drain T COUNT                 standby into objects: ok <left in standby>; no room
 *   ballast KIND COUNT SEED       so many pages of the driver's own, straight into objects
 *   unballast COUNT SEED          drop so many of them, here and there
 *   compact, collect, reap
 *   pack                          the coldest segment is compressed again, and not moved yet: ok
 *                                 <1, or 0 if there is none or one is on its way>
 *   move                          some of what is packed: ok <1 if there is more>
 *   tier N                        a disk tier in the folder N: ok <1, or 0 if there is one>
 *   untier N                      ok <1 if it is gone, 0 if it leaves or there is none>
 *   demote COUNT                  so many of the coldest segments at most: ok <segments on disks>
 *   recall                        all that are on disks come back: ok <segments on disks>
 *   trouble KIND                  moves meet 0 nothing, 1 writes that fail, 2 reads that fail, 3
 *                                 short transfers: ok
 *   dump                          ok <words> <IDs>, then T ADDRESS STATE ID of every word, then for
 *                                 each ID: ID COUNT BACKEND, and the page unless the line ends in
 *                                 "corrupt"
 *   check                         ok KEY=VALUE...: the invariants that only the inside can see
 *
 * A new request is one function and one line in the table at the end.
 */

#include <stdarg.h>
#include <sys/mman.h>

#include "check.h"
#include "compact.h"
#include "equal.h"
#include "pack.h"
#include "pagemap.h"
#include "standby.h"
#include "tier.h"
#include "vacancy.h"

#define TARGETS_MAX 64u
#define BALLAST_MAX 16384u
#define STANDBY_SLOTS 512u
#define ADDRESS_END ((uint64_t)1 << 47)

struct target {
	bool live;     /* its process runs */
	bool standing; /* its standby is mapped; outlives the process if others refer to it */
	int area_fd;
	char *slots; /* what hands writes to */
	struct usw_pagemap map;
	struct usw_standby standby;
	struct usw_equal_run equal_run;
};

struct ballast {
	uint32_t id; /* 0: none */
	enum check_kind kind;
	uint64_t seed;
};

static struct usw_segments segments;
static struct usw_vacancies vacancies;
static struct usw_vswap vswap;
static struct usw_nodes nodes;
static struct usw_standby_space standbys;
static struct usw_equal equal;
static struct target targets[TARGETS_MAX];
static struct ballast ballast[BALLAST_MAX];
static struct usw_tiers tiers;
static struct usw_packer packer;
static struct usw_sealer sealer;
static const char *folder; /* of the tiers' folders */
static uint64_t trouble;
static uint64_t request[4]; /* the numbers of the request */

static void answer(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void answer(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
}

static void send_page(const void *page)
{
	CHECK_EQ(fwrite(page, USW_PAGE_BYTES, 1, stdout), 1);
}

static struct target *the_target(void)
{
	CHECK_THAT(request[0], <, TARGETS_MAX);
	return &targets[request[0]];
}

static off_t disk_offset(uint32_t index, const struct usw_object *object)
{
	return (off_t)(usw_disk_offset(usw_where_slot(object->where)) +
		       usw_disk_object_offset(object, index));
}

/** What a disk fault does. */
static bool load_from_disk(uint32_t id, uint64_t place, const struct usw_object *object, void *page)
{
	char bytes[USW_PAGE_BYTES + USW_SEAL_TAG_BYTES];
	size_t length = object->length_bytes + usw_disk_tag_bytes(object->is_whole);
	int fd = tiers.at[usw_where_tier(object->where)].fd;

	CHECK_EQ(pread(fd, bytes, length, disk_offset(usw_place_index(place), object)), length);
	return usw_tier_unseal(&tiers, &sealer, usw_place_group(place), usw_place_index(place),
			       object, bytes, bytes) == 0 &&
	       usw_codec_decompress(object->codec, bytes, object->length_bytes, page) == 0 &&
	       usw_codec_hash(page, CHECK_SEED) == usw_vswap_hash(&vswap, id);
}

/** The optimistic read over all backends: nobody moves anything meanwhile here. */
static bool load(uint32_t id, void *page)
{
	uint64_t place = usw_word_place(usw_vswap_word(&vswap, id));
	const char *standby = NULL;
	struct usw_object object;

	if (usw_word_backend(usw_vswap_word(&vswap, id)) == USW_BACKEND_OBJECT &&
	    usw_segments_find(&segments, usw_place_group(place), usw_place_index(place), &object) &&
	    usw_where_tier(object.where) != USW_TIER_RAM)
		return load_from_disk(id, place, &object, page);
	if (usw_word_backend(usw_vswap_word(&vswap, id)) == USW_BACKEND_MEMORY)
		standby = usw_standby_page(&standbys, usw_place_group(place), 0);
	return check_read(&vswap, standby, id, page) == CHECK_READ_RIGHT;
}

/** Whether a page that left has the content of the ID it came from. */
static bool is_unchanged(uint32_t id, const void *page, bool repeated, uint64_t word)
{
	switch (usw_word_backend(usw_vswap_word(&vswap, id))) {
	case USW_BACKEND_ZERO:
		return repeated && word == 0;
	case USW_BACKEND_SAME:
		return repeated && word == usw_vswap_hash(&vswap, id);
	case USW_BACKEND_MEMORY:
	case USW_BACKEND_OBJECT:
		return !repeated && usw_codec_hash(page, CHECK_SEED) == usw_vswap_hash(&vswap, id);
	case USW_BACKEND_FREE:
		break;
	}
	CHECK(!"a page map refers to a free ID");
	return false;
}

// --- Standby ------------------------------------------------------------------------------------

static void standby_open(struct target *target)
{
	target->area_fd = memfd_create("area", MFD_CLOEXEC);
	CHECK(target->area_fd >= 0);
	CHECK(ftruncate(target->area_fd, USW_AREA_MEMFD_BYTES) == 0);
	target->slots = mmap(NULL, USW_STANDBY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			     target->area_fd, USW_RING_BYTES);
	CHECK(target->slots != MAP_FAILED);
	CHECK_EQ(usw_standby_init(&target->standby, &standbys, target->area_fd, STANDBY_SLOTS), 0);
	target->standing = true;
}

static void standby_close(struct target *target)
{
	usw_standby_trim(&target->standby);
	usw_standby_deinit(&target->standby);
	munmap(target->slots, USW_STANDBY_BYTES);
	close(target->area_fd);
	*target = (struct target){0};
}

static bool compress_slot(uint32_t number, uint32_t slot, uint32_t id)
{
	uint64_t place = usw_place(number, slot);
	uint64_t word = usw_vswap_peek(&vswap, id);
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	uint64_t new_place;

	if (usw_word_backend(word) != USW_BACKEND_MEMORY || usw_word_place(word) != place)
		return true; // nobody refers to it any more
	uint32_t length = usw_codec_compress(&(struct usw_codec_hint){0},
					     usw_standby_page(&standbys, number, slot), object,
					     &codec);
	vacancies.is_wanted = id & 1;
	if (usw_vacancies_store(&vacancies, &segments, id, object, length, codec, &new_place))
		return false;
	CHECK(usw_vswap_repoint(&vswap, id, USW_BACKEND_MEMORY, place, USW_BACKEND_OBJECT,
				new_place));
	return true;
}

/** Move the oldest pages of a standby into objects. False: no room. */
static bool drain(struct target *target, uint64_t count)
{
	struct usw_standby *standby = &target->standby;

	for (; count && usw_standby_count(standby); count--) {
		uint32_t slot = standby->tail % standby->capacity;

		if (standby->owner[slot] &&
		    !compress_slot(standby->number, slot, standby->owner[slot]))
			return false;
		standby->owner[slot] = USW_VSWAP_NONE;
		standby->tail++;
	}
	if (usw_standby_count(standby) == 0)
		usw_standby_trim(standby);
	if (!target->live && usw_standby_count(standby) == 0)
		standby_close(target);
	return true;
}

static void do_drain(void)
{
	struct target *target = the_target();

	if (!target->standing)
		answer("ok 0");
	else if (!drain(target, request[1]))
		answer("no room");
	else
		answer("ok %u", target->standing ? usw_standby_count(&target->standby) : 0);
}

// --- Pages of a target --------------------------------------------------------------------------

static uint32_t new_target(void)
{
	uint32_t number = 0;

	while (number < TARGETS_MAX && (targets[number].live || targets[number].standing))
		number++;
	CHECK_THAT(number, <, TARGETS_MAX);
	targets[number] = (struct target){.live = true, .map = {.nodes = &nodes}};
	standby_open(&targets[number]);
	return number;
}

static void do_target(void)
{
	answer("ok %u", new_target());
}

/**
 * The ID of an equal page, with a reference; what is in another's standby becomes an object first.
 */
static uint32_t find_equal(struct target *target, const char *page, uint64_t hash)
{
	uint32_t id = usw_equal_find(&equal, &target->equal_run, hash);
	uint64_t word = id ? usw_vswap_word(&vswap, id) : 0;
	uint32_t number = usw_place_group(usw_word_place(word));
	bool is_foreign = usw_word_backend(word) == USW_BACKEND_MEMORY &&
			  number != target->standby.number;

	if (!id)
		return USW_VSWAP_NONE;
	if ((!is_foreign || compress_slot(number, usw_place_index(usw_word_place(word)), id)) &&
	    usw_equal_is(&equal, id, page))
		return id;
	usw_vswap_put(&vswap, id);
	return USW_VSWAP_NONE;
}

/** Give a page in its slot an ID. Returns the letter of the answer, 'n' if there was no ID. */
static char settle(struct target *target, uint32_t kept_id, uint32_t slot, uint32_t *ret_id)
{
	const char *page = usw_standby_page(&standbys, target->standby.number, slot);
	uint64_t word = 0;
	bool repeated = usw_codec_is_repeated(page, &word);
	enum usw_backend backend = word ? USW_BACKEND_SAME : USW_BACKEND_ZERO;

	if (kept_id && is_unchanged(kept_id, page, repeated, word)) {
		*ret_id = kept_id;
		return 'c';
	}
	if (repeated)
		return usw_vswap_alloc(&vswap, backend, 0, word, ret_id) ? 'n' : word ? 's' : 'z';
	uint64_t hash = usw_codec_hash(page, CHECK_SEED);
	*ret_id = find_equal(target, page, hash);
	if (*ret_id)
		return 'e';
	if (usw_vswap_alloc(&vswap, USW_BACKEND_MEMORY, usw_place(target->standby.number, slot),
			    hash, ret_id))
		return 'n';
	target->standby.owner[slot] = *ret_id;
	usw_equal_note(&equal, *ret_id, hash);
	return 'm';
}

/** One page on its way out, from picking to publishing. */
static char evict_page(struct target *target, uint64_t address, uint32_t slot)
{
	usw_page_word *word = usw_pagemap_make(&target->map, address);
	uint32_t id;

	if (!word)
		return 'n';
	uint64_t before = atomic_load(word);
	uint64_t marked = (before & ~(uint64_t)7) | USW_PAGE_EVICTING;
	usw_page_transition(word, before, marked);
	char letter = settle(target, usw_page_id(before), slot, &id);
	if (letter == 'n') {
		usw_page_transition(word, marked, before);
		return letter;
	}
	usw_page_transition(word, marked, usw_page_make(USW_PAGE_EVICTED, 0, id, 0));
	if (usw_page_id(before) && letter != 'c')
		usw_vswap_put(&vswap, usw_page_id(before));
	return letter;
}

static void do_evict(void)
{
	struct target *target = the_target();
	uint32_t count = (uint32_t)request[2];
	char letters[STANDBY_SLOTS + 1] = {0};
	static char pages[STANDBY_SLOTS * USW_PAGE_BYTES];

	CHECK(count > 0 && count <= STANDBY_SLOTS);
	CHECK_EQ(fread(pages, USW_PAGE_BYTES, count, stdin), count);
	usw_vswap_collect(&vswap);
	int slot = usw_standby_take(&target->standby, count);
	if (slot == -ENOSPC) {
		drain(target, UINT64_MAX);
		slot = usw_standby_take(&target->standby, count);
	}
	memset(letters, 'n', count);
	for (uint32_t i = 0; slot >= 0 && i < count; i++) {
		memcpy(target->slots + ((uint32_t)slot + i) * USW_PAGE_BYTES,
		       pages + i * USW_PAGE_BYTES, USW_PAGE_BYTES);
		letters[i] =
			evict_page(target, request[1] + i * USW_PAGE_BYTES, (uint32_t)slot + i);
	}
	answer("ok %s", letters);
}

static void do_fault(void)
{
	struct target *target = the_target();
	usw_page_word *word = usw_pagemap_find(&target->map, request[1]);
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));

	CHECK(word);
	uint64_t before = atomic_load(word);
	uint32_t id = usw_page_id(before);
	if (!load(id, page)) {
		usw_page_transition(word, before, usw_page_make(USW_PAGE_POISONED, 0, 0, 0));
		usw_vswap_put(&vswap, id);
		answer("ok poisoned");
		return;
	}
	usw_page_transition(word, before,
			    usw_page_make(USW_PAGE_RESIDENT, 0, request[2] ? id : 0, 0));
	if (!request[2])
		usw_vswap_put(&vswap, id);
	answer("ok");
	send_page(page);
}

static void do_drop(void)
{
	usw_page_word *word = usw_pagemap_find(&the_target()->map, request[1]);

	CHECK(word);
	uint64_t before = atomic_load(word);
	CHECK_EQ(usw_page_state(before), USW_PAGE_RESIDENT);
	usw_page_transition(word, before, usw_page_make(USW_PAGE_RESIDENT, 0, 0, 0));
	if (usw_page_id(before))
		usw_vswap_put(&vswap, usw_page_id(before));
	answer("ok");
}

static void damage_disk(uint32_t index, const struct usw_object *object)
{
	int fd = tiers.at[usw_where_tier(object->where)].fd;
	off_t offset = disk_offset(index, object) + object->length_bytes / 2;
	char byte;

	CHECK_EQ(pread(fd, &byte, 1, offset), 1);
	byte ^= 0x41;
	CHECK_EQ(pwrite(fd, &byte, 1, offset), 1);
}

/** What is damaged now is damaged for good: no copy of it is on its way. */
static void finish_packing(void)
{
	while (packer.segment)
		usw_pack_move_some(&packer);
}

static void do_corrupt(void)
{
	usw_page_word *word = usw_pagemap_find(&the_target()->map, request[1]);
	struct usw_object object;

	CHECK(word);
	finish_packing();
	uint64_t descriptor = usw_vswap_word(&vswap, usw_page_id(atomic_load(word)));
	uint32_t group = usw_place_group(usw_word_place(descriptor));
	uint32_t index = usw_place_index(usw_word_place(descriptor));
	if (usw_word_backend(descriptor) == USW_BACKEND_OBJECT) {
		CHECK(usw_segments_find(&segments, group, index, &object));
		if (usw_where_tier(object.where) != USW_TIER_RAM)
			damage_disk(index, &object);
		else
			((char *)(uintptr_t)object.bytes)[object.length_bytes / 2] ^= 0x41;
	} else if (usw_word_backend(descriptor) == USW_BACKEND_MEMORY) {
		for (uint32_t i = 0; i < TARGETS_MAX; i++)
			if (targets[i].standing && targets[i].standby.number == group)
				targets[i].slots[index * USW_PAGE_BYTES + 1000] ^= 0x41;
	} else {
		answer("ok 0");
		return;
	}
	answer("ok 1");
}

static void do_forge(void)
{
	usw_page_word *word = usw_pagemap_find(&the_target()->map, request[1]);
	struct usw_descriptor *table = (struct usw_descriptor *)vswap.space.base;
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));

	CHECK(word);
	CHECK_EQ(fread(page, USW_PAGE_BYTES, 1, stdin), 1);
	uint32_t id = usw_page_id(atomic_load(word));
	enum usw_backend backend = usw_word_backend(usw_vswap_word(&vswap, id));
	bool is_stored = backend == USW_BACKEND_MEMORY || backend == USW_BACKEND_OBJECT;
	if (is_stored) {
		uint64_t hash = usw_codec_hash(page, CHECK_SEED);

		atomic_store(&table[id].hash, hash);
		usw_equal_note(&equal, id, hash);
	}
	answer("ok %u", is_stored);
}

static void forget(struct target *target, uint64_t start, uint64_t end)
{
	uint64_t address = start;
	usw_page_word *word;

	for (; (word = usw_pagemap_next(&target->map, &address, end)); address += USW_PAGE_BYTES) {
		uint64_t before = atomic_load(word);

		usw_page_transition(word, before, 0);
		if (usw_page_id(before))
			usw_vswap_put(&vswap, usw_page_id(before));
	}
	usw_pagemap_prune(&target->map, start, end);
}

static void end_target(struct target *target)
{
	forget(target, 0, ADDRESS_END);
	CHECK_EQ(target->map.root, 0);
	target->live = false;
	drain(target, UINT64_MAX);
}

static void do_fork(void)
{
	struct target *parent = the_target();
	uint32_t number = new_target();
	uint64_t address = 0;
	usw_page_word *word;

	for (; (word = usw_pagemap_next(&parent->map, &address, ADDRESS_END));
	     address += USW_PAGE_BYTES) {
		usw_page_word *there = usw_pagemap_make(&targets[number].map, address);
		uint64_t now = atomic_load(word);

		if (!there) {
			end_target(&targets[number]);
			answer("no nodes");
			return;
		}
		if (usw_page_id(now))
			usw_vswap_get(&vswap, usw_page_id(now));
		atomic_store(there, now);
	}
	answer("ok %u", number);
}

static void do_unmap(void)
{
	forget(the_target(), request[1], request[2]);
	answer("ok");
}

static void do_remap(void)
{
	struct target *target = the_target();
	uint64_t from = request[1], to = request[2], length = request[3];
	uint64_t address = from;
	usw_page_word *word;

	forget(target, to, to + length);
	for (; (word = usw_pagemap_next(&target->map, &address, from + length));
	     address += USW_PAGE_BYTES) {
		usw_page_word *there = usw_pagemap_make(&target->map, address - from + to);

		CHECK(there); // the test leaves room for this
		atomic_store(there, atomic_load(word));
		atomic_store(word, 0);
	}
	usw_pagemap_prune(&target->map, from, from + length);
	answer("ok");
}

static void do_exit(void)
{
	end_target(the_target());
	answer("ok");
}

// --- Ballast: enough of it to close segments ----------------------------------------------------

static bool add_ballast(struct ballast *entry, enum check_kind kind, uint64_t seed)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	uint64_t place;
	uint32_t id;

	check_fill(page, kind, seed);
	uint64_t hash = usw_codec_hash(page, CHECK_SEED);
	if (usw_vswap_alloc(&vswap, USW_BACKEND_MEMORY, usw_place(USW_STANDBY_MAX, 0), hash, &id))
		return false;
	uint32_t length = usw_codec_compress(&(struct usw_codec_hint){0}, page, object, &codec);
	vacancies.is_wanted = id & 1;
	if (usw_vacancies_store(&vacancies, &segments, id, object, length, codec, &place)) {
		usw_vswap_put(&vswap, id);
		return false;
	}
	CHECK(usw_vswap_repoint(&vswap, id, USW_BACKEND_MEMORY, usw_place(USW_STANDBY_MAX, 0),
				USW_BACKEND_OBJECT, place));
	*entry = (struct ballast){.id = id, .kind = kind, .seed = seed};
	return true;
}

static uint32_t count_ballast(void)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < BALLAST_MAX; i++)
		count += ballast[i].id != 0;
	return count;
}

static void do_ballast(void)
{
	uint64_t left = request[1];
	uint64_t state = request[2];

	CHECK(request[0] >= CHECK_TINY && request[0] < CHECK_KINDS);
	usw_vswap_collect(&vswap);
	for (uint32_t i = 0; i < BALLAST_MAX && left; i++) {
		if (ballast[i].id)
			continue;
		if (!add_ballast(&ballast[i], (enum check_kind)request[0], check_random(&state)))
			break;
		left--;
	}
	answer("ok %u", count_ballast());
}

static void do_unballast(void)
{
	uint64_t state = request[1];

	for (uint64_t i = 0; i < request[0]; i++) {
		struct ballast *entry = &ballast[check_random(&state) % BALLAST_MAX];

		if (entry->id)
			usw_vswap_put(&vswap, entry->id);
		entry->id = USW_VSWAP_NONE;
	}
	answer("ok %u", count_ballast());
}

// --- The owner's chores -------------------------------------------------------------------------

static void do_compact(void)
{
	int ret = usw_compact_one(&vswap);

	if (ret < 0)
		answer("no room");
	else
		answer("ok %d", ret);
}

static void do_pack(void)
{
	uint32_t loose, all;
	uint32_t segment = packer.segment || !packer.encoder
				   ? 0
				   : usw_segments_coldest_loose(&segments, &loose, &all);

	if (segment) {
		usw_segments_header(&segments, segment)->is_moving = true;
		packer.segment = segment;
		packer.moved = 0;
		usw_pack_segment(&packer);
	}
	answer("ok %d", segment != 0);
}

static void do_move(void)
{
	answer("ok %d", packer.segment && usw_pack_move_some(&packer));
}

static void do_collect(void)
{
	usw_vswap_collect(&vswap);
	usw_equal_fit(&equal);
	answer("ok");
}

static void do_reap(void)
{
	usw_segments_reap(&segments);
	answer("ok");
}

// --- Tiers --------------------------------------------------------------------------------------

static void on_damaged(void *context, uint32_t id)
{
	(void)context;
	usw_vswap_note_damaged(&vswap, id);
}

static void on_moved(void *context)
{
	(void)context; // the owner looks by itself
}

static void on_report(void *context, enum usw_event_kind kind, uint32_t id, const char *text)
{
	(void)context;
	(void)kind;
	(void)id;
	CHECK(strlen(text) > 10);
}

static int make_trouble(void *context, const struct usw_aio_request *aio)
{
	(void)context;
	return trouble == (aio->is_write ? 1 : 2) ? -EIO : 0;
}

static struct usw_aio_injection injection = {.before = make_trouble};

static const char *path_of(uint64_t number)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s/%u", folder, (unsigned int)number);
	return path;
}

static bool some_move(void)
{
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++)
		if (atomic_load(&tiers.moves[i].stage) != USW_MOVE_IDLE)
			return true;
	return false;
}

/** Begin what is planned, and wait until nothing moves any more. */
static void move(uint64_t demote_bytes, uint64_t promote_bytes)
{
	struct usw_tiers_plan plan = {.demote_bytes = demote_bytes, .promote_bytes = promote_bytes};

	do {
		tiers.swept_ns = 0;
		usw_tiers_step(&tiers, &plan);
		plan.demote_bytes = 0;
		usleep(50);
	} while (some_move());
	usw_segments_reap(&segments);
}

static void do_tier(void)
{
	struct usw_error error;
	uint32_t before = tiers.count;
	int ret = usw_tiers_add(&tiers, path_of(request[0]), NULL, UINT64_MAX, (int)request[0],
				&error);

	CHECK(ret > 0 || ret == -EEXIST);
	if (ret > 0 && !sealer.context)
		CHECK_EQ(usw_sealer_init(&sealer, &tiers.key), 0);
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (tiers.at[i].fd >= 0) // read and damaged at any offset
			fcntl(tiers.at[i].fd, F_SETFL, fcntl(tiers.at[i].fd, F_GETFL) & ~O_DIRECT);
	answer("ok %u", tiers.count - before);
}

static void do_untier(void)
{
	struct usw_error error;
	uint32_t before = tiers.count;
	int ret = usw_tiers_remove(&tiers, path_of(request[0]), UINT64_MAX, &error);

	CHECK(ret > 0 || ret == -ENOENT || ret == -EALREADY);
	// Space on disks is given back by another thread: then the tier is gone.
	for (int i = 0; i < (ret == -ENOENT || trouble == 2 ? 1 : 2000); i++) {
		move(0, UINT64_MAX);
		if (tiers.count != before)
			break;
	}
	answer("ok %u", before - tiers.count);
}

static void do_demote(void)
{
	move(request[0] * USW_SEGMENT_BYTES / 2, 0);
	answer("ok %llu", (unsigned long long)segments.disk_segments);
}

static void do_recall(void)
{
	for (uint32_t i = 1; i < segments.high_water; i++)
		if (usw_where_tier(usw_segments_header(&segments, i)->where) != USW_TIER_RAM)
			usw_segments_header(&segments, i)->is_recalled = true;
	move(0, UINT64_MAX);
	answer("ok %llu", (unsigned long long)segments.disk_segments);
}

static void do_trouble(void)
{
	trouble = request[0];
	injection.longest_bytes = trouble == 3 ? 65536 : 0;
	answer("ok");
}

/**
 * Nothing lives: the slots of the dead are given back, and no disk holds anything. A tier that leaves
 * keeps its slots until its end, which is the owner's to bring about.
 */
static void drop_tiers(void)
{
	CHECK_EQ(segments.disk_segments, 0);
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_disk *disk = tiers.at[i].disk;
		uint64_t held = 1;

		while (atomic_load(&tiers.at[i].state) != USW_TIER_NONE && held) {
			pthread_mutex_lock(&disk->lock);
			held = disk->held_bytes;
			pthread_mutex_unlock(&disk->lock);
			move(0, 0);
		}
	}
	CHECK_EQ(tiers.tags.held_bytes, 0);
	if (sealer.context)
		usw_sealer_deinit(&sealer);
	usw_tiers_deinit(&tiers);
}

// --- Looking ------------------------------------------------------------------------------------

static void dump_words(const struct target *target, uint32_t *ids, uint32_t *id_count, bool *seen)
{
	uint64_t address = 0;
	usw_page_word *word;

	for (; (word = usw_pagemap_next(&target->map, &address, ADDRESS_END));
	     address += USW_PAGE_BYTES) {
		uint64_t now = atomic_load(word);
		uint32_t id = usw_page_id(now);

		CHECK(usw_pagemap_find(&target->map, address) == word);
		answer("%u %llu %u %u", (uint32_t)(target - targets), (unsigned long long)address,
		       usw_page_state(now), id);
		if (id && !seen[id]) {
			seen[id] = true;
			ids[(*id_count)++] = id;
		}
	}
}

static void dump_id(uint32_t id)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	bool right = load(id, page);
	uint64_t word = usw_vswap_word(&vswap, id);

	answer("%u %u %u %s", id, usw_word_count(word), usw_word_backend(word),
	       right ? "right" : "corrupt");
	if (right)
		send_page(page);
}

static void do_dump(void)
{
	uint64_t word_count = 0;
	uint32_t id_count = 0;
	uint32_t *ids = calloc(vswap.capacity, sizeof(*ids));
	bool *seen = calloc(vswap.capacity, sizeof(*seen));

	CHECK(ids && seen);
	for (uint32_t i = 0; i < TARGETS_MAX; i++)
		if (targets[i].live)
			word_count += usw_pagemap_count(&targets[i].map);
	answer("ok %llu", (unsigned long long)word_count);
	for (uint32_t i = 0; i < TARGETS_MAX; i++)
		if (targets[i].live)
			dump_words(&targets[i], ids, &id_count, seen);
	answer("%u", id_count);
	for (uint32_t i = 0; i < id_count; i++)
		dump_id(ids[i]);
	free(ids);
	free(seen);
}

static void check_one_ballast(const struct ballast *entry)
{
	char wanted[USW_PAGE_BYTES] __attribute__((aligned(8)));
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));

	if (!entry->id)
		return;
	CHECK(load(entry->id, page));
	check_fill(wanted, entry->kind, entry->seed);
	CHECK(memcmp(wanted, page, USW_PAGE_BYTES) == 0);
}

/** All of it is thousands of pages: a few at a time, all when something has moved. */
static void check_ballast(void)
{
	static uint64_t compacted;
	static uint32_t next;
	uint32_t count = compacted != segments.compacted_segments ? BALLAST_MAX : 128;

	compacted = segments.compacted_segments;
	for (; count; count--)
		check_one_ballast(&ballast[next++ % BALLAST_MAX]);
}

/** What is said to be held is what the kernel counts, but for warm nodes and an empty table. */
static void check_held(void)
{
	uint64_t held_nodes = usw_nodes_held_bytes(&nodes);
	uint64_t kernel_nodes = usw_space_held_bytes(&nodes.space);

	CHECK_EQ(segments.used_bytes, usw_space_held_bytes(&segments.data));
	CHECK_EQ(segments.table_bytes, usw_space_held_bytes(&segments.tables));
	CHECK_EQ(usw_vswap_held_bytes(&vswap), usw_space_held_bytes(&vswap.space));
	CHECK_THAT(usw_space_held_bytes(&equal.space), <=, usw_equal_held_bytes(&equal));
	CHECK(kernel_nodes >= held_nodes && kernel_nodes <= held_nodes + 64 * USW_PAGE_BYTES);
	CHECK_THAT(usw_space_held_bytes(&segments.headers), <=, USW_PAGE_BYTES);
	if (tiers.tags.space.base)
		CHECK_THAT(usw_space_held_bytes(&tiers.tags.space), <=, tiers.tags.held_bytes);
}

static void do_check(void)
{
	uint64_t standby_count = 0;

	usw_segments_check(&segments);
	check_held();
	check_ballast();
	for (uint32_t i = 0; i < TARGETS_MAX; i++)
		if (targets[i].standing)
			standby_count += usw_standby_count(&targets[i].standby);
	answer("ok live=%llu objects=%llu ballast=%u standby=%llu garbage=%llu segments=%llu compacted=%llu",
	       (unsigned long long)vswap.live_count, (unsigned long long)segments.live_count,
	       count_ballast(), (unsigned long long)standby_count,
	       (unsigned long long)usw_segments_garbage_bytes(&segments),
	       (unsigned long long)(segments.used_segments + segments.disk_segments),
	       (unsigned long long)segments.compacted_segments);
}

/**
 * Drop everything: nothing may be left. What stays by design are the open segments with their tables,
 * the page of segment headers, and up to 64 free nodes kept warm.
 */
static void drop_everything(void)
{
	for (uint32_t i = 0; i < BALLAST_MAX; i++)
		check_one_ballast(&ballast[i]);
	for (uint32_t i = 0; i < TARGETS_MAX; i++)
		if (targets[i].live)
			end_target(&targets[i]);
	for (uint32_t i = 0; i < BALLAST_MAX; i++)
		if (ballast[i].id)
			usw_vswap_put(&vswap, ballast[i].id);
	for (uint32_t i = 0; i < TARGETS_MAX; i++)
		if (targets[i].standing)
			CHECK(drain(&targets[i], UINT64_MAX));
	finish_packing();
	usw_vswap_collect(&vswap);
	usw_segments_reap(&segments);
	usw_segments_check(&segments);
	drop_tiers();
	check_held();
	CHECK_EQ(vswap.live_count, 0);
	usw_equal_fit(&equal);
	CHECK_EQ(usw_equal_held_bytes(&equal), 0);
	CHECK_EQ(usw_vswap_held_bytes(&vswap), 0);
	CHECK_EQ(usw_nodes_held_bytes(&nodes), 0);
	CHECK_EQ(segments.live_count, 0);
	CHECK_EQ(segments.live_bytes, 0);
	CHECK_THAT(segments.used_segments, <=, 3);
	CHECK_THAT(segments.used_bytes, <=, 3 * USW_SEGMENT_BYTES);
	for (uint32_t i = 0; i < TARGETS_MAX; i++)
		CHECK(!targets[i].standing);
}

// --- The pipe -----------------------------------------------------------------------------------

static const struct {
	const char *name;
	void (*run)(void);
} requests[] = {
	{"ballast", do_ballast}, {"check", do_check},         {"collect", do_collect},
	{"compact", do_compact}, {"corrupt", do_corrupt},     {"drain", do_drain},
	{"forge", do_forge},     {"drop", do_drop},           {"dump", do_dump},
	{"evict", do_evict},     {"exit", do_exit},           {"fault", do_fault},
	{"fork", do_fork},       {"reap", do_reap},           {"remap", do_remap},
	{"target", do_target},   {"unballast", do_unballast}, {"unmap", do_unmap},
	{"tier", do_tier},       {"untier", do_untier},       {"demote", do_demote},
	{"recall", do_recall},   {"trouble", do_trouble},     {"pack", do_pack},
	{"move", do_move},
};

static void serve(const char *line)
{
	char name[16] = {0};
	unsigned long long numbers[4] = {0};

	CHECK(sscanf(line, "%15s %llu %llu %llu %llu", name, &numbers[0], &numbers[1], &numbers[2],
		     &numbers[3]) > 0);
	for (size_t i = 0; i < 4; i++)
		request[i] = numbers[i];
	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
		if (strcmp(requests[i].name, name) == 0) {
			requests[i].run();
			fflush(stdout);
			return;
		}
	}
	CHECK(!"an unknown request");
}

int main(int argc, char **argv)
{
	char line[128];

	// Capacities: IDs, segments, nodes; and where the tiers' folders are.
	CHECK_EQ(argc, 5);
	folder = argv[4];
	check_start(300);
	CHECK_EQ(usw_segments_create(&segments, (uint32_t)atoi(argv[2])), 0);
	CHECK_EQ(usw_vswap_create(&vswap, &segments, (uint32_t)atoi(argv[1])), 0);
	CHECK_EQ(usw_nodes_create(&nodes, (uint32_t)atoi(argv[3])), 0);
	CHECK_EQ(usw_standby_space_create(&standbys), 0);
	CHECK_EQ(usw_equal_create(&equal, &vswap, &standbys), 0);
	const struct usw_tiers_hooks hooks = {
		.moved = on_moved, .damaged = on_damaged, .report = on_report};
	CHECK_EQ(usw_tiers_init(&tiers, &segments, true, &hooks), 0);
	tiers.injection = &injection;
	usw_packer_init(&packer, &vswap, CHECK_SEED, NULL, NULL);
	usw_pack_prepare(&packer); // without zstd there is no encoder, and nothing is packed
	while (fgets(line, sizeof(line), stdin))
		serve(line);
	drop_everything();
	usw_packer_deinit(&packer);
	usw_equal_destroy(&equal);
	usw_standby_space_destroy(&standbys);
	usw_nodes_destroy(&nodes);
	usw_vswap_destroy(&vswap);
	usw_segments_destroy(&segments);
	return 0;
}
