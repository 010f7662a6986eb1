// SPDX-License-Identifier: MIT

/**
 * @file
 * From a virtual swap ID to the bytes of the page, whatever backend holds them.
 *
 * The optimistic read of vswap.h: no lock; what was read is proved by the hash. Any thread, as
 * long as a page map the caller is responsible for refers to the ID.
 */

#ifndef USW_CONTENT_H
#define USW_CONTENT_H

#include "session.h"

/** An object that is on a disk: what it takes to read it, and to tell later whether it moved. */
struct usw_disk_place {
	uint64_t word; /* of the descriptor */
	uint32_t segment;
	uint32_t index;
	struct usw_object object;
};

/**
 * Bring the content of an ID into a page of memory. Returns 0 and the backend it came from, or
 * -EBADMSG: the content is where it should be and is not what was stored; `ret` names where.
 * -EREMOTE: it is on a disk, at `ret_place`; nothing was read.
 */
int usw_content_load(const struct usw_session *session, uint32_t id, void *page,
		     enum usw_backend *ret, struct usw_disk_place *ret_place);

/** A segment has been read of, and is warm: it goes to a disk after those that are not. */
void usw_content_touch(const struct usw_session *session, uint32_t segment);

/** Have the processor fetch the object of an ID, if it is in RAM, while other work is done. */
void usw_content_prefetch(const struct usw_session *session, uint32_t id);

/** True if the content of an ID is on a disk, at `ret_place`. */
bool usw_content_is_on_disk(const struct usw_session *session, uint32_t id,
			    struct usw_disk_place *ret_place);

/** True if the content of an ID is packed (dense.h), wherever it is. */
bool usw_content_is_packed(const struct usw_session *session, uint32_t id);

/** True if a word of an ID, and the place of the segment it names, are still the same. */
bool usw_content_is_unmoved(const struct usw_session *session, uint32_t id, uint64_t word,
			    uint64_t where);

/**
 * True if the page has exactly the content of the ID, and nobody has found that damaged: a kept
 * copy is still good.
 */
bool usw_content_is(const struct usw_session *session, uint32_t id, const void *page,
		    uint64_t hash);

#endif /* USW_CONTENT_H */
