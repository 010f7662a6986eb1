// SPDX-License-Identifier: MIT

/**
 * @file
 * Two engines behind one queue. See aio.h.
 */

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

#ifdef USW_HAS_URING
#include <liburing.h>
#endif

#include "aio.h"

/* More threads than a disk has use for only fight over it. */
#define USW_AIO_THREADS_MAX 16u
#define USW_AIO_STACK_BYTES (64u << 10)

struct usw_aio {
	enum usw_aio_engine engine;
	int event_fd;
	uint32_t depth;
	uint32_t under_way;
	const struct usw_aio_injection *injection;
	struct usw_aio_request *failed; /* by injection; owner */

#ifdef USW_HAS_URING
	struct io_uring ring;
	uint32_t unsubmitted;
#endif

	/* The threads' side. `lock` is over the two lists and `stopping`. */
	pthread_mutex_t lock;
	pthread_cond_t some_waiting;
	struct usw_aio_request *waiting_first, *waiting_last;
	struct usw_aio_request *finished;
	bool stopping;
	pthread_t threads[USW_AIO_THREADS_MAX];
	uint32_t thread_count;
};

/** How much of the request the next transfer is to move. */
static uint32_t next_bytes(const struct usw_aio *aio, const struct usw_aio_request *request)
{
	uint32_t left = request->length_bytes - request->done_bytes;

	if (aio->injection && aio->injection->longest_bytes)
		return (uint32_t)usw_min(left, aio->injection->longest_bytes);
	return left;
}

/** Take note of one transfer; true if the request is finished. */
static bool note_transfer(struct usw_aio_request *request, ssize_t moved)
{
	if (moved == -EINTR || moved == -EAGAIN)
		return false;
	if (moved < 0) {
		request->result = (int)moved;
		return true;
	}
	if (moved == 0) {
		// Nothing read: the file ends here. Nothing written: it takes no more.
		request->result = request->is_write ? -ENOSPC : -ENODATA;
		return true;
	}
	request->done_bytes += (uint32_t)moved;
	request->result = 0;
	return request->done_bytes == request->length_bytes;
}

static void announce(struct usw_aio *aio)
{
	uint64_t one = 1;

	if (write(aio->event_fd, &one, sizeof(one)) < 0)
		return; // EAGAIN: it is readable anyway
}

// --- io_uring -----------------------------------------------------------------------------------

#ifdef USW_HAS_URING

static int uring_init(struct usw_aio *aio)
{
	int ret = io_uring_queue_init(aio->depth, &aio->ring, 0);

	if (ret)
		return ret;
	ret = io_uring_register_eventfd(&aio->ring, aio->event_fd);
	if (ret)
		io_uring_queue_exit(&aio->ring);
	return ret;
}

static void uring_submit(struct usw_aio *aio, struct usw_aio_request *request)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);
	char *buffer = (char *)request->buffer + request->done_bytes;
	uint64_t offset = request->offset_bytes + request->done_bytes;
	uint32_t length = next_bytes(aio, request);

	// The ring holds `depth` entries, and no more requests are ever under way.
	usw_assert(sqe);
	if (request->is_write)
		io_uring_prep_write(sqe, request->fd, buffer, length, offset);
	else
		io_uring_prep_read(sqe, request->fd, buffer, length, offset);
	io_uring_sqe_set_data(sqe, request);
	aio->unsubmitted++;
}

static void uring_flush(struct usw_aio *aio)
{
	while (aio->unsubmitted) {
		int ret = io_uring_submit(&aio->ring);

		if (ret > 0)
			aio->unsubmitted -= (uint32_t)ret;
		else if (ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
			usw_assert(!"io_uring refuses what it has accepted");
	}
}

static struct usw_aio_request *uring_reap(struct usw_aio *aio)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&aio->ring, &cqe) == 0) {
		struct usw_aio_request *request = io_uring_cqe_get_data(cqe);
		int moved = cqe->res;

		io_uring_cqe_seen(&aio->ring, cqe);
		if (note_transfer(request, moved))
			return request;
		uring_submit(aio, request);
		uring_flush(aio);
	}
	return NULL;
}

#endif /* USW_HAS_URING */

// --- Threads ------------------------------------------------------------------------------------

static void transfer(const struct usw_aio *aio, struct usw_aio_request *request)
{
	for (;;) {
		char *buffer = (char *)request->buffer + request->done_bytes;
		off_t offset = (off_t)(request->offset_bytes + request->done_bytes);
		uint32_t length = next_bytes(aio, request);
		ssize_t moved = request->is_write ? pwrite(request->fd, buffer, length, offset)
						  : pread(request->fd, buffer, length, offset);

		if (note_transfer(request, moved < 0 ? -errno : moved))
			return;
	}
}

static void *thread_main(void *argument)
{
	struct usw_aio *aio = argument;

	pthread_mutex_lock(&aio->lock);
	for (;;) {
		struct usw_aio_request *request = aio->waiting_first;

		if (!request && aio->stopping)
			break;
		if (!request) {
			pthread_cond_wait(&aio->some_waiting, &aio->lock);
			continue;
		}
		aio->waiting_first = request->next;
		pthread_mutex_unlock(&aio->lock);
		transfer(aio, request);
		pthread_mutex_lock(&aio->lock);
		request->next = aio->finished;
		aio->finished = request;
		announce(aio);
	}
	pthread_mutex_unlock(&aio->lock);
	return NULL;
}

static int threads_init(struct usw_aio *aio)
{
	uint32_t wanted = (uint32_t)usw_min(aio->depth, USW_AIO_THREADS_MAX);
	pthread_attr_t attributes;
	int ret = 0;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, USW_AIO_STACK_BYTES);
	while (!ret && aio->thread_count < wanted) {
		ret = pthread_create(&aio->threads[aio->thread_count], &attributes, thread_main,
				     aio);
		if (!ret)
			pthread_setname_np(aio->threads[aio->thread_count++], "uffdswap-io");
	}
	pthread_attr_destroy(&attributes);
	return aio->thread_count ? 0 : -ret; // fewer than wanted will do
}

static void threads_deinit(struct usw_aio *aio)
{
	pthread_mutex_lock(&aio->lock);
	aio->stopping = true;
	pthread_cond_broadcast(&aio->some_waiting);
	pthread_mutex_unlock(&aio->lock);
	for (uint32_t i = 0; i < aio->thread_count; i++)
		pthread_join(aio->threads[i], NULL);
}

static void threads_submit(struct usw_aio *aio, struct usw_aio_request *request)
{
	request->next = NULL;
	pthread_mutex_lock(&aio->lock);
	if (aio->waiting_first)
		aio->waiting_last->next = request;
	else
		aio->waiting_first = request;
	aio->waiting_last = request;
	pthread_cond_signal(&aio->some_waiting);
	pthread_mutex_unlock(&aio->lock);
}

static struct usw_aio_request *threads_reap(struct usw_aio *aio)
{
	pthread_mutex_lock(&aio->lock);
	struct usw_aio_request *request = aio->finished;

	if (request)
		aio->finished = request->next;
	pthread_mutex_unlock(&aio->lock);
	return request;
}

// --- The queue ----------------------------------------------------------------------------------

static int start_engine(struct usw_aio *aio, enum usw_aio_engine preferred)
{
#ifdef USW_HAS_URING
	aio->engine = USW_AIO_URING;
	if (preferred == USW_AIO_URING && uring_init(aio) == 0)
		return 0;
#endif
	(void)preferred;
	aio->engine = USW_AIO_THREADS;
	return threads_init(aio);
}

int usw_aio_create(uint32_t depth, enum usw_aio_engine preferred, struct usw_aio **ret)
{
	struct usw_aio *aio = calloc(1, sizeof(*aio));

	if (!aio)
		return -ENOMEM;
	aio->depth = depth;
	pthread_mutex_init(&aio->lock, NULL);
	pthread_cond_init(&aio->some_waiting, NULL);
	aio->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int error = aio->event_fd < 0 ? -errno : start_engine(aio, preferred);
	if (error) {
		usw_cleanup_close(&aio->event_fd);
		pthread_cond_destroy(&aio->some_waiting);
		pthread_mutex_destroy(&aio->lock);
		free(aio);
		return error;
	}
	*ret = aio;
	return 0;
}

void usw_aio_destroy(struct usw_aio *aio)
{
	if (!aio)
		return;
	// The kernel and the threads write into buffers that the caller is about to free.
	usw_aio_flush(aio);
	while (aio->under_way)
		if (!usw_aio_reap(aio))
			usleep(100);
	if (aio->engine == USW_AIO_THREADS)
		threads_deinit(aio);
#ifdef USW_HAS_URING
	if (aio->engine == USW_AIO_URING)
		io_uring_queue_exit(&aio->ring);
#endif
	close(aio->event_fd);
	pthread_cond_destroy(&aio->some_waiting);
	pthread_mutex_destroy(&aio->lock);
	free(aio);
}

enum usw_aio_engine usw_aio_engine(const struct usw_aio *aio)
{
	return aio->engine;
}

int usw_aio_fd(const struct usw_aio *aio)
{
	return aio->event_fd;
}

uint32_t usw_aio_under_way(const struct usw_aio *aio)
{
	return aio->under_way;
}

void usw_aio_inject(struct usw_aio *aio, const struct usw_aio_injection *injection)
{
	aio->injection = injection;
}

int usw_aio_submit(struct usw_aio *aio, struct usw_aio_request *request)
{
	usw_assert(request->length_bytes > 0);
	if (aio->under_way == aio->depth)
		return -EAGAIN;
	aio->under_way++;
	request->done_bytes = 0;
	request->result = 0;

	int failed = 0;
	if (aio->injection && aio->injection->before)
		failed = aio->injection->before(aio->injection->context, request);
	if (failed) {
		request->result = failed;
		request->next = aio->failed;
		aio->failed = request;
		announce(aio);
		return 0;
	}
#ifdef USW_HAS_URING
	if (aio->engine == USW_AIO_URING) {
		uring_submit(aio, request);
		return 0;
	}
#endif
	threads_submit(aio, request);
	return 0;
}

void usw_aio_flush(struct usw_aio *aio)
{
#ifdef USW_HAS_URING
	if (aio->engine == USW_AIO_URING)
		uring_flush(aio);
#endif
	(void)aio; // threads begin at once
}

static struct usw_aio_request *reap_failed(struct usw_aio *aio)
{
	struct usw_aio_request *request = aio->failed;

	if (request)
		aio->failed = request->next;
	return request;
}

static struct usw_aio_request *reap_any(struct usw_aio *aio)
{
	struct usw_aio_request *request = reap_failed(aio);

	if (request)
		return request;
#ifdef USW_HAS_URING
	if (aio->engine == USW_AIO_URING)
		return uring_reap(aio);
#endif
	return threads_reap(aio);
}

struct usw_aio_request *usw_aio_reap(struct usw_aio *aio)
{
	uint64_t announced;
	struct usw_aio_request *request = reap_any(aio);

	// Nothing there: take the announcement back, then look again, so that none is ever missed.
	if (!request && read(aio->event_fd, &announced, sizeof(announced)) > 0)
		request = reap_any(aio);
	if (request)
		aio->under_way--;
	return request;
}
