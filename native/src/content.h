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

/**
 * Bring the content of an ID into a page of memory. Returns 0 and the backend it came from, or
 * -EBADMSG: the content is where it should be and is not what was stored; `ret` names where.
 */
int usw_content_load(const struct usw_session *session, uint32_t id, void *page,
		     enum usw_backend *ret);

/** True if the page has exactly the content of the ID: a kept copy is still good. */
bool usw_content_is(const struct usw_session *session, uint32_t id, const void *page,
		    uint64_t hash);

#endif /* USW_CONTENT_H */
