// SPDX-License-Identifier: MIT

/**
 * @file
 * Faults whose content is on a disk: single objects are read while the fault thread goes on.
 *
 * A fault thread never waits for a disk. It asks for the object, sets the fault aside here and
 * answers others; the completion arrives through its epoll set. What was read is opened (seal,
 * codec, hash) and belongs to the ID it was read for, wherever that is by then: so it is handed in
 * if the page map still names this ID with this hash, and otherwise the fault begins anew. What
 * cannot be opened is damaged only if it has not moved meanwhile. Whole pages are opened only then:
 * their tags do not come with them (tag.h).
 *
 * What is asked for ahead and lies side by side in one slot is read with one request, a span: its
 * reads are neighbours here, too, and the bytes lie over their buffers from the first one's on. So
 * none of these buffers is used again before all of the span is opened. A fault that waits is read
 * alone: a block that the disk cannot read does no harm to its neighbours.
 *
 * A walk is as fast as the disk only if that reads on while the pages of a window are opened and
 * brought in. So the next two windows are read meanwhile, into reserve: their pages stay here, as
 * the disk gave them, until the walk gets there, or until nobody has come for them.
 *
 * All of this belongs to one fault thread. It is made at the thread's first disk fault, since most
 * sessions have none; nothing is allocated after that.
 */

#ifndef USW_DISKFAULT_H
#define USW_DISKFAULT_H

#include "aio.h"
#include "content.h"
#include "seal.h"

#define USW_DISK_READS_MAX 256u
/** Lists of reads by page, at least twice as many as reads: most are of one or none. */
#define USW_DISK_LISTS 512u
/** The longest object and its tag, and what alignment adds at both ends. */
#define USW_DISK_READ_BYTES (3 * USW_PAGE_BYTES)
/** The longest span, and what is read in vain between two of its objects. */
#define USW_DISK_SPAN_BYTES 262144u
#define USW_DISK_GAP_BYTES USW_PAGE_BYTES

enum usw_disk_read_stage {
	USW_READ_IDLE,
	USW_READ_RUNNING,
	USW_READ_DONE,  /* not looked at yet */
	USW_READ_READY, /* opened: its page waits for room or for an event */
};

/** One page on its way in. */
struct usw_disk_read {
	enum usw_disk_read_stage stage;
	uint16_t next_listed; /* in its list, one more than its number; 0: the last */
	struct usw_aio_request request;
	struct usw_target *target; /* NULL: gone meanwhile */
	struct usw_fault fault;    /* what waits for it */
	bool is_ahead;             /* nothing waits: it was asked for ahead of its fault */
	bool is_reserve;           /* and it is not brought in before it is asked for again */
	uint32_t id;
	uint64_t hash;
	struct usw_disk_place place;
	uint32_t first;     /* of the reads of its span */
	uint32_t count;     /* of reads in the span; the first one's */
	uint32_t left;      /* of them, those that are not done; the first one's */
	bool is_held;       /* its buffer holds bytes of a span that is not done */
	uint64_t end_bytes; /* where it ends in the file */
	int result;         /* of the span's request */
	const char *why;    /* what was read is no good, "" if it is; NULL: it was not opened yet */
	char *bytes;        /* the object, once it is there; NULL: it is opened or done */
	char *page;         /* what it is opened to */
};

struct usw_disk_faults {
	struct usw_aio *aio;
	struct usw_sealer sealer;
	bool is_sealed;
	uint32_t busy;                               /* reads that are not idle */
	uint64_t busy_bits[USW_DISK_READS_MAX / 64]; /* a bit for each of them */
	uint16_t lists[USW_DISK_LISTS]; /* the first read of each, one more than its number; 0: none */
	bool is_ripe;                   /* what is done is to be looked at once more, at once */
	struct usw_disk_read at[USW_DISK_READS_MAX];
	uint32_t looked;               /* where the next look begins */
	uint32_t next;                 /* where the next span begins, if there is room */
	struct usw_disk_read *growing; /* first of a span that is not handed in yet; NULL: none */
	char *buffers;                 /* USW_DISK_READ_BYTES for each read, then all their pages */
};

/** Make what a thread needs. NULL: no memory or no descriptors for it. */
struct usw_disk_faults *usw_diskfault_create(struct usw_session *session);
/** Waits for reads under way. NULL is fine. */
void usw_diskfault_destroy(struct usw_disk_faults *faults);

/** The first read from number `from` on that is not idle; USW_DISK_READS_MAX if there is none. */
static inline uint32_t usw_diskfault_next(const struct usw_disk_faults *faults, uint32_t from)
{
	uint64_t mask = UINT64_MAX << from % 64;

	for (uint32_t word = from / 64; word < USW_DISK_READS_MAX / 64; word++) {
		uint64_t bits = faults->busy_bits[word] & mask;

		if (bits)
			return word * 64 + (uint32_t)__builtin_ctzll(bits);
		mask = UINT64_MAX;
	}
	return USW_DISK_READS_MAX;
}

/** The read under way or ready for a page, NULL if there is none. */
struct usw_disk_read *usw_diskfault_find(struct usw_disk_faults *faults,
					 const struct usw_target *target, uint64_t page);

/** True if pages of a target are on their way in that nothing waits for. */
bool usw_diskfault_reads_ahead(const struct usw_disk_faults *faults,
			       const struct usw_target *target);

/**
 * Ask for the object at a place. usw_diskfault_flush() starts it. NULL: as many as may be are under
 * way.
 */
struct usw_disk_read *usw_diskfault_begin(struct usw_disk_faults *faults,
					  struct usw_session *session, struct usw_target *target,
					  const struct usw_fault *fault, bool is_ahead, uint32_t id,
					  const struct usw_disk_place *place);

/** Call a page from reserve, if it is there. */
void usw_diskfault_call(struct usw_disk_faults *faults, struct usw_disk_read *read);

/** Start all that was asked for. */
void usw_diskfault_flush(struct usw_disk_faults *faults);

/** Take note of the reads that are done, and drop what is in reserve for too long. */
void usw_diskfault_collect(struct usw_disk_faults *faults);

/**
 * Open what was read. 0: the page is in usw_diskfault_page(). -EAGAIN: it has moved meanwhile, or
 * was not read for want of memory, or because of a neighbour in its span: begin anew. -EBADMSG: it
 * is damaged; `ret_why` says how.
 */
int usw_diskfault_open(struct usw_disk_faults *faults, struct usw_session *session,
		       struct usw_disk_read *read, const char **ret_why);

/** True if a read is to be looked at: the disk has answered, and it is not just in reserve. */
static inline bool usw_diskfault_is_there(const struct usw_disk_read *read)
{
	return (read->stage == USW_READ_DONE || read->stage == USW_READ_READY) && !read->is_reserve;
}

static inline const char *usw_diskfault_page(const struct usw_disk_read *read)
{
	return read->page;
}

void usw_diskfault_done(struct usw_disk_faults *faults, struct usw_disk_read *read);

/** Nobody waits for the reads of a target any more. */
void usw_diskfault_forget(struct usw_disk_faults *faults, const struct usw_target *target);

#endif /* USW_DISKFAULT_H */
