// SPDX-License-Identifier: MIT

/**
 * @file
 * Reads and writes that do not hold up the thread that asks for them.
 *
 * The engine is io_uring where the build has liburing and the kernel lets this process use it, else
 * a few threads with pread(2) and pwrite(2): containers commonly forbid io_uring. Both announce
 * completions through one eventfd, so that a loop over descriptors can wait for them, and both
 * finish what they start: a short transfer is continued, EINTR is tried again, and a request comes
 * back either whole or with one error.
 *
 * Each user has a queue of its own; submitting and reaping is for the thread that owns it. Requests
 * and buffers are the caller's and must stay until they are reaped. Nothing is allocated after
 * creation.
 */

#ifndef USW_AIO_H
#define USW_AIO_H

#include "base.h"

enum usw_aio_engine {
	USW_AIO_URING = 0,
	USW_AIO_THREADS = 1,
};

struct usw_aio;

struct usw_aio_request {
	int fd;
	bool is_write;
	uint32_t length_bytes;
	void *buffer;
	uint64_t offset_bytes; /* in the file */
	int result;            /* 0 or -errno, once reaped; -ENODATA: the file ends before */

	/* The queue's own. */
	uint32_t done_bytes;
	struct usw_aio_request *next;
};

/** What a test may do to each request just before it is handed to the engine. */
struct usw_aio_injection {
	/** Called on the submitting thread. Returns 0, or -errno to let the request fail with. */
	int (*before)(void *context, const struct usw_aio_request *request);
	void *context;
	uint32_t longest_bytes; /* no single transfer is longer, if not 0: short reads and writes */
};

/**
 * Create a queue for at most `depth` requests at a time. `preferred` is what is tried first;
 * threads are what is left.
 */
int usw_aio_create(uint32_t depth, enum usw_aio_engine preferred, struct usw_aio **ret);
/** Waits for what is under way. NULL is fine. */
void usw_aio_destroy(struct usw_aio *aio);

enum usw_aio_engine usw_aio_engine(const struct usw_aio *aio);

/** Readable while a completion may be there to be reaped. */
int usw_aio_fd(const struct usw_aio *aio);

/** Hand in a request. -EAGAIN: `depth` requests are under way; reap first. */
int usw_aio_submit(struct usw_aio *aio, struct usw_aio_request *request);

/** Let the engine begin with all that was handed in: one system call for many requests. */
void usw_aio_flush(struct usw_aio *aio);

/** The next request that is finished, with its result; NULL if there is none now. */
struct usw_aio_request *usw_aio_reap(struct usw_aio *aio);

/** Requests handed in and not yet reaped. */
uint32_t usw_aio_under_way(const struct usw_aio *aio);

/** For tests: NULL ends it. The injection must outlive the requests it applies to. */
void usw_aio_inject(struct usw_aio *aio, const struct usw_aio_injection *injection);

#endif /* USW_AIO_H */
