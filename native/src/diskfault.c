// SPDX-License-Identifier: MIT

/**
 * @file
 * Reads of single objects. See diskfault.h.
 */

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "diskfault.h"
#include "tier.h"

/*
 * How long a page is in reserve: a walk that is still going on comes for it within a millisecond.
 */
#define USW_RESERVE_NS 20000000u
#define USW_BUFFERS_BYTES (USW_DISK_READS_MAX * (USW_DISK_READ_BYTES + USW_PAGE_BYTES))

static int init(struct usw_disk_faults *faults, struct usw_session *session)
{
	faults->is_sealed = session->tiers.is_sealed;
	void *buffers = mmap(NULL, USW_BUFFERS_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffers == MAP_FAILED)
		return -errno;
	faults->buffers = buffers;
	char *pages = faults->buffers + USW_DISK_READS_MAX * USW_DISK_READ_BYTES;
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++)
		faults->at[i].page = pages + (uint64_t)i * USW_PAGE_BYTES;
	if (faults->is_sealed && usw_sealer_init(&faults->sealer, &session->tiers.key))
		return -ENOMEM;
	return usw_aio_create(USW_DISK_READS_MAX, USW_AIO_URING, &faults->aio);
}

struct usw_disk_faults *usw_diskfault_create(struct usw_session *session)
{
	struct usw_disk_faults *faults = calloc(1, sizeof(*faults));

	if (faults && init(faults, session)) {
		usw_diskfault_destroy(faults);
		return NULL;
	}
	return faults;
}

void usw_diskfault_destroy(struct usw_disk_faults *faults)
{
	if (!faults)
		return;
	usw_aio_destroy(faults->aio);
	usw_sealer_deinit(&faults->sealer);
	if (faults->buffers)
		munmap(faults->buffers, USW_BUFFERS_BYTES);
	free(faults);
}

/* Reads are a cache line and more each: only those that are not idle are ever looked at. */
#define for_each_busy(faults, i) \
	for (uint32_t i = usw_diskfault_next(faults, 0); i < USW_DISK_READS_MAX; \
	     i = usw_diskfault_next(faults, i + 1))

static uint16_t *list_of(struct usw_disk_faults *faults, uint64_t page)
{
	return &faults->lists[page / USW_PAGE_BYTES % USW_DISK_LISTS];
}

static void put_on_list(struct usw_disk_faults *faults, struct usw_disk_read *read)
{
	uint16_t *list = list_of(faults, read->fault.page);

	read->next_listed = *list;
	*list = (uint16_t)(read - faults->at + 1);
}

static void take_off_list(struct usw_disk_faults *faults, const struct usw_disk_read *read)
{
	uint16_t *link = list_of(faults, read->fault.page);

	while (&faults->at[*link - 1] != read)
		link = &faults->at[*link - 1].next_listed;
	*link = read->next_listed;
}

struct usw_disk_read *usw_diskfault_find(struct usw_disk_faults *faults,
					 const struct usw_target *target, uint64_t page)
{
	uint16_t number = *list_of(faults, page);

	while (number) {
		struct usw_disk_read *read = &faults->at[number - 1];

		if (read->target == target && read->fault.page == page)
			return read;
		number = read->next_listed;
	}
	return NULL;
}

bool usw_diskfault_reads_ahead(const struct usw_disk_faults *faults,
			       const struct usw_target *target)
{
	for_each_busy(faults, i)
		if (faults->at[i].target == target && faults->at[i].is_ahead)
			return true;
	return false;
}

/** Where an object and its tag are in the file of its tier. */
struct extent {
	uint64_t start, end;
	uint64_t align;
};

static struct extent extent_of(const struct usw_tier *tier, const struct usw_disk_place *place)
{
	const struct usw_object *object = &place->object;
	uint64_t start = usw_disk_offset(usw_where_slot(object->where)) +
			 usw_disk_object_offset(object, place->index);

	return (struct extent){
		.start = start,
		.end = start + object->length_bytes + usw_disk_tag_bytes(object->is_whole),
		.align = atomic_load(&tier->align_bytes),
	};
}

static bool is_free(const struct usw_disk_read *read)
{
	return read->stage == USW_READ_IDLE && !read->is_held;
}

/** A place for a new span, where there are most likely more behind it. NULL: there is none. */
static struct usw_disk_read *find_free(struct usw_disk_faults *faults)
{
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++) {
		struct usw_disk_read *read = &faults->at[(faults->next + i) % USW_DISK_READS_MAX];

		if (is_free(read))
			return read;
	}
	return NULL;
}

static void hand_in_growing(struct usw_disk_faults *faults)
{
	struct usw_disk_read *first = faults->growing;

	faults->growing = NULL;
	if (!first)
		return;
	int ret = usw_aio_submit(faults->aio, &first->request);
	usw_assert(ret == 0); // as many requests as reads
}

/** The place for an object behind the span that grows, if it goes on with it. NULL: it does not. */
static struct usw_disk_read *find_behind(struct usw_disk_faults *faults,
					 const struct usw_disk_place *place,
					 const struct extent *extent)
{
	const struct usw_disk_read *first = faults->growing;

	if (!first || first->first + first->count == USW_DISK_READS_MAX)
		return NULL;
	struct usw_disk_read *read = &faults->at[first->first + first->count];
	uint64_t end = first->request.offset_bytes + first->request.length_bytes;

	// What begins in the block in which the span ends lies behind it all the same.
	if (!is_free(read) || place->object.where != first->place.object.where ||
	    extent->start + extent->align < end || extent->start > end + USW_DISK_GAP_BYTES ||
	    extent->start < read[-1].end_bytes ||
	    extent->end - first->request.offset_bytes > USW_DISK_SPAN_BYTES)
		return NULL;
	return read;
}

/** Open a span with its first read, or add one to that which grows. */
static void place_read(struct usw_disk_faults *faults, struct usw_disk_read *read,
		       const struct usw_tier *tier, const struct extent *extent)
{
	uint32_t number = (uint32_t)(read - faults->at);
	uint64_t last = (extent->end + extent->align - 1) & ~(extent->align - 1);

	if (!faults->growing) {
		uint64_t start = extent->start & ~(extent->align - 1);

		faults->growing = read;
		read->first = number;
		read->count = read->left = 0;
		read->request = (struct usw_aio_request){
			.fd = atomic_load(&tier->fd),
			.buffer = faults->buffers + (uint64_t)number * USW_DISK_READ_BYTES,
			.offset_bytes = start,
		};
	}
	struct usw_disk_read *first = faults->growing;

	read->first = first->first;
	first->count++;
	first->left++;
	first->request.length_bytes = (uint32_t)(last - first->request.offset_bytes);
	usw_assert(first->request.length_bytes <= first->count * USW_DISK_READ_BYTES);
	read->bytes = (char *)first->request.buffer + (extent->start - first->request.offset_bytes);
	read->end_bytes = extent->end;
	read->is_held = true;
	faults->next = (number + 1) % USW_DISK_READS_MAX;
}

/** A read needs its span's bytes no more. Nothing if it has left it already. */
static void leave_span(struct usw_disk_faults *faults, struct usw_disk_read *read)
{
	struct usw_disk_read *first = &faults->at[read->first];

	if (!read->bytes)
		return;
	read->bytes = NULL;
	if (--first->left)
		return;
	for (uint32_t i = 0; i < first->count; i++)
		first[i].is_held = false;
}

/** Drop what nobody has come for: of a time before `since_ns`. */
static void drop_reserve(struct usw_disk_faults *faults, uint64_t since_ns)
{
	for_each_busy(faults, i) {
		struct usw_disk_read *read = &faults->at[i];

		if (read->stage == USW_READ_DONE && read->is_reserve &&
		    read->fault.since_ns < since_ns)
			usw_diskfault_done(faults, read);
	}
}

/** A place for a read: behind the span that grows, or for a new one. NULL: there is none. */
static struct usw_disk_read *find_place(struct usw_disk_faults *faults,
					const struct usw_disk_place *place,
					const struct extent *extent, bool is_ahead)
{
	struct usw_disk_read *read = is_ahead ? find_behind(faults, place, extent) : NULL;

	if (read)
		return read;
	hand_in_growing(faults);
	read = find_free(faults);
	if (read || is_ahead)
		return read;
	drop_reserve(faults, UINT64_MAX); // somebody waits
	return find_free(faults);
}

struct usw_disk_read *usw_diskfault_begin(struct usw_disk_faults *faults,
					  struct usw_session *session, struct usw_target *target,
					  const struct usw_fault *fault, bool is_ahead, uint32_t id,
					  const struct usw_disk_place *place)
{
	const struct usw_tier *tier = &session->tiers.at[usw_where_tier(place->object.where)];
	const struct extent extent = extent_of(tier, place);
	struct usw_disk_read *read = find_place(faults, place, &extent, is_ahead);

	if (!read)
		return NULL;
	uint32_t number = (uint32_t)(read - faults->at);

	read->stage = USW_READ_RUNNING;
	read->target = target;
	read->fault = *fault;
	read->is_ahead = is_ahead;
	read->is_reserve = false;
	read->why = NULL;
	read->id = id;
	read->hash = usw_vswap_hash(&session->vswap, id);
	read->place = *place;
	place_read(faults, read, tier, &extent);
	put_on_list(faults, read);
	faults->busy++;
	faults->busy_bits[number / 64] |= (uint64_t)1 << number % 64;
	if (!is_ahead)
		hand_in_growing(faults);
	return read;
}

void usw_diskfault_call(struct usw_disk_faults *faults, struct usw_disk_read *read)
{
	faults->is_ripe |= read->is_reserve;
	read->is_reserve = false;
}

void usw_diskfault_flush(struct usw_disk_faults *faults)
{
	hand_in_growing(faults);
	usw_aio_flush(faults->aio);
}

void usw_diskfault_collect(struct usw_disk_faults *faults)
{
	struct usw_aio_request *request;

	while ((request = usw_aio_reap(faults->aio))) {
		struct usw_disk_read *first =
			(struct usw_disk_read *)((char *)request -
						 offsetof(struct usw_disk_read, request));

		for (uint32_t i = 0; i < first->count; i++) {
			first[i].stage = USW_READ_DONE;
			first[i].result = request->result;
		}
	}
	drop_reserve(faults, usw_now_ns() - USW_RESERVE_NS);
}

/** Seal, codec, hash: each of them may refuse. Returns why, or nothing ("") if none does. */
static const char *unpack(struct usw_disk_faults *faults, struct usw_session *session,
			  struct usw_disk_read *read)
{
	const struct usw_object *object = &read->place.object;
	char *bytes = read->bytes;

	if (read->result)
		return read->result == -ENODATA ? "it is cut off" : "it cannot be read";
	if (faults->is_sealed &&
	    usw_tier_unseal(&session->tiers, &faults->sealer, read->place.segment,
			    read->place.index, object, bytes, bytes))
		return "its seal is broken";
	if (usw_codec_decompress(object->codec, bytes, object->length_bytes, read->page))
		return "it cannot be decompressed";
	if (usw_codec_hash(read->page, session->hash_seed) != read->hash)
		return "hash mismatch";
	return "";
}

static bool has_moved(const struct usw_session *session, const struct usw_disk_read *read)
{
	return !usw_content_is_unmoved(session, read->id, read->place.word,
				       read->place.object.where);
}

int usw_diskfault_open(struct usw_disk_faults *faults, struct usw_session *session,
		       struct usw_disk_read *read, const char **ret_why)
{
	usw_assert(read->stage == USW_READ_DONE);
	// Not the disk's fault, or that of another block: it is asked again, alone if somebody
	// waits.
	if (read->result == -ENOMEM || read->result == -ECANCELED ||
	    (read->result && faults->at[read->first].count > 1))
		return -EAGAIN;
	// Once: it is opened where it lies.
	if (!read->why) {
		if (faults->is_sealed && read->place.object.is_whole && has_moved(session, read))
			return -EAGAIN; // its tag is for others by now
		read->why = unpack(faults, session, read);
	}
	if (!*read->why) {
		read->stage = USW_READ_READY;
		leave_span(faults, read);
		return 0;
	}
	if (has_moved(session, read))
		return -EAGAIN;
	*ret_why = read->why;
	return -EBADMSG;
}

void usw_diskfault_done(struct usw_disk_faults *faults, struct usw_disk_read *read)
{
	uint32_t number = (uint32_t)(read - faults->at);

	leave_span(faults, read);
	take_off_list(faults, read);
	read->stage = USW_READ_IDLE;
	read->target = NULL;
	faults->busy--;
	faults->busy_bits[number / 64] &= ~((uint64_t)1 << number % 64);
}

void usw_diskfault_forget(struct usw_disk_faults *faults, const struct usw_target *target)
{
	for_each_busy(faults, i)
		if (faults->at[i].target == target)
			faults->at[i].target = NULL;
}
