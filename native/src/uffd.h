// SPDX-License-Identifier: MIT

/**
 * @file
 * The calls on a userfaultfd that work from outside, one function each.
 *
 * All return 0 or -errno. The kernel reports a failed range in a signed field of the argument as
 * well as in errno; these wrappers fold both into "how far" and "why". What a caller must expect:
 *
 *   -EAGAIN  an event of this descriptor is unread; the fault message does not come again
 *   -EEXIST  the next page is present: somebody was first
 *   -ENOENT  the range is not inside one registered mapping
 *   -ESRCH   the address space is gone
 *
 * Stateless; any thread.
 */

#ifndef USW_UFFD_H
#define USW_UFFD_H

#include "base.h"
#include "uffd_abi.h"

/** The features every managed descriptor is opened with. */
#define USW_UFFD_FEATURES \
	(UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | \
	 UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MOVE | \
	 UFFD_FEATURE_POISON | UFFD_FEATURE_PAGEFAULT_FLAG_WP)

int usw_uffd_api(int uffd, uint64_t features);

/**
 * Read messages, as many as there are now, `bytes` at most. Bytes or -errno, -EAGAIN where there is
 * none. Never blocks: whether a descriptor does is a flag that its target shares with us and may
 * change at any time (before Linux 6.10 in the very moment of the call as well).
 */
ssize_t usw_uffd_read(int uffd, struct uffd_msg *messages, size_t bytes);

/** Have poll(2) tell of messages: of a descriptor that blocks it says only that, and all the time. */
void usw_uffd_unblock(int uffd);

/** Copy pages in and wake who waits for them. Stores the bytes that arrived, also on failure. */
int usw_uffd_copy(int uffd, uint64_t address, const void *source, uint64_t length_bytes,
		  uint64_t *ret_done);

/** Make accesses to the range end in SIGBUS. -EOPNOTSUPP before Linux 6.6. */
int usw_uffd_poison(int uffd, uint64_t address, uint64_t length_bytes);

int usw_uffd_wake(int uffd, uint64_t address, uint64_t length_bytes);

/** For faults of missing pages, and of writes to protected ones. */
int usw_uffd_register(int uffd, uint64_t start, uint64_t length_bytes);
int usw_uffd_unregister(int uffd, uint64_t start, uint64_t length_bytes);

/** Make the first write to each page that is there raise a fault: 0.03 us a page. */
int usw_uffd_protect(int uffd, uint64_t start, uint64_t length_bytes);
/** Let writes to the range go on, and wake who waits for that. */
int usw_uffd_unprotect(int uffd, uint64_t start, uint64_t length_bytes);

/** What is mapped at a page, as far as userfaultfd is concerned. */
enum usw_uffd_kind {
	USW_UFFD_UNKNOWN,   /* it cannot be told: an event is unread */
	USW_UFFD_NONE,      /* nothing is mapped there, or it is not registered with us */
	USW_UFFD_ANONYMOUS, /* a registered mapping of private anonymous memory */
	USW_UFFD_SHARED,    /* a registered mapping of something else */
};

/** Ask without any effect. Half a microsecond. */
enum usw_uffd_kind usw_uffd_probe(int uffd, uint64_t page);

/** Whether [start, end) is in one registered mapping of private anonymous memory. */
bool usw_uffd_is_whole(int uffd, uint64_t start, uint64_t end);

/** Whether nothing is at a page that could be registered with us. Takes the mmap lock to write. */
bool usw_uffd_is_vacant(int uffd, uint64_t page);

/**
 * Whether private memory is mapped at a page, also while an event is unread. Registers it if it was
 * not: to have what is in no page map filled with zeros changes nothing.
 */
bool usw_uffd_claim(int uffd, uint64_t page);

/** True once the descriptor's address space is gone. No effect on it otherwise. */
bool usw_uffd_is_dead(int uffd);

#endif /* USW_UFFD_H */
