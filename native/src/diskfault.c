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

#define USW_READ_STRIDE (USW_DISK_READ_BYTES + USW_PAGE_BYTES)

static int init(struct usw_disk_faults *faults, struct usw_session *session)
{
	faults->is_sealed = session->tiers.is_sealed;
	void *buffers = mmap(NULL, USW_DISK_READS_MAX * USW_READ_STRIDE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffers == MAP_FAILED)
		return -errno;
	faults->buffers = buffers;
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++)
		faults->at[i].buffer = faults->buffers + (uint64_t)i * USW_READ_STRIDE;
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
		munmap(faults->buffers, USW_DISK_READS_MAX * USW_READ_STRIDE);
	free(faults);
}

struct usw_disk_read *usw_diskfault_find(struct usw_disk_faults *faults,
					 const struct usw_target *target, uint64_t page)
{
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++) {
		struct usw_disk_read *read = &faults->at[i];

		if (read->stage != USW_READ_IDLE && read->target == target &&
		    read->fault.address == page)
			return read;
	}
	return NULL;
}

int usw_diskfault_begin(struct usw_disk_faults *faults, struct usw_session *session,
			struct usw_target *target, const struct usw_deferred *fault, bool is_ahead,
			uint32_t id, const struct usw_disk_place *place)
{
	const struct usw_object *object = &place->object;
	const struct usw_tier *tier = &session->tiers.at[usw_where_tier(object->where)];
	uint64_t start = usw_disk_offset(usw_where_slot(object->where)) +
			 usw_disk_object_offset(object->offset_bytes, place->index);
	uint64_t end = start + object->length_bytes + USW_SEAL_TAG_BYTES;
	uint64_t align = atomic_load(&tier->align_bytes);
	uint32_t i = 0;

	if (faults->busy == USW_DISK_READS_MAX)
		return -EAGAIN;
	while (faults->at[i].stage != USW_READ_IDLE)
		i++;
	struct usw_disk_read *read = &faults->at[i];
	uint64_t first = start & ~(align - 1);
	uint64_t last = (end + align - 1) & ~(align - 1);
	usw_assert(last - first <= USW_DISK_READ_BYTES);
	read->stage = USW_READ_RUNNING;
	read->target = target;
	read->fault = *fault;
	read->is_ahead = is_ahead;
	read->id = id;
	read->hash = usw_vswap_hash(&session->vswap, id);
	read->place = *place;
	read->skip_bytes = (uint32_t)(start - first);
	read->request = (struct usw_aio_request){
		.fd = atomic_load(&tier->fd),
		.buffer = read->buffer,
		.length_bytes = (uint32_t)(last - first),
		.offset_bytes = first,
	};
	faults->busy++;
	int ret = usw_aio_submit(faults->aio, &read->request);
	usw_assert(ret == 0); // as many requests as reads
	return 0;
}

void usw_diskfault_collect(struct usw_disk_faults *faults)
{
	struct usw_aio_request *request;

	while ((request = usw_aio_reap(faults->aio))) {
		struct usw_disk_read *read =
			(struct usw_disk_read *)((char *)request -
						 offsetof(struct usw_disk_read, request));

		read->stage = USW_READ_DONE;
	}
}

/** Seal, codec, hash: each of them may refuse. Returns why, or NULL. */
static const char *unpack(struct usw_disk_faults *faults, struct usw_session *session,
			  struct usw_disk_read *read, char *page)
{
	const struct usw_object *object = &read->place.object;
	char *bytes = read->buffer + read->skip_bytes;

	if (read->request.result)
		return read->request.result == -ENODATA ? "it is cut off" : "it cannot be read";
	if (faults->is_sealed) {
		struct usw_seal_bond bond =
			usw_tier_bond(read->place.segment, read->place.index, object);

		if (usw_unseal(&faults->sealer, &bond, bytes, bytes))
			return "its seal is broken";
	}
	if (usw_codec_decompress(object->codec, bytes, object->length_bytes, page))
		return "it cannot be decompressed";
	if (usw_codec_hash(page, session->hash_seed) != read->hash)
		return "hash mismatch";
	return NULL;
}

int usw_diskfault_open(struct usw_disk_faults *faults, struct usw_session *session,
		       struct usw_disk_read *read, const char **ret_why)
{
	// Not the disk's fault: it is asked again.
	if (read->request.result == -ENOMEM || read->request.result == -ECANCELED)
		return -EAGAIN;
	const char *why = unpack(faults, session, read, read->buffer + USW_DISK_READ_BYTES);

	if (!why) {
		read->stage = USW_READ_READY;
		return 0;
	}
	if (!usw_content_is_unmoved(session, read->id, read->place.word, read->place.object.where))
		return -EAGAIN;
	*ret_why = why;
	return -EBADMSG;
}

void usw_diskfault_done(struct usw_disk_faults *faults, struct usw_disk_read *read)
{
	read->stage = USW_READ_IDLE;
	read->target = NULL;
	faults->busy--;
}

void usw_diskfault_forget(struct usw_disk_faults *faults, const struct usw_target *target)
{
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++)
		if (faults->at[i].stage != USW_READ_IDLE && faults->at[i].target == target)
			faults->at[i].target = NULL;
}
