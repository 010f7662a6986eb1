// SPDX-License-Identifier: MIT

/**
 * @file
 * Both engines of aio.h: what is read is what was written, whole, whatever goes wrong in between.
 */

#include <poll.h>
#include <sys/mman.h>

#include "aio.h"
#include "check.h"

#define DEPTH 32u
#define BLOCK_BYTES 16384u
#define BLOCKS 200u

static char blocks[DEPTH][BLOCK_BYTES];
static struct usw_aio_request requests[DEPTH];

static int open_file(void)
{
	int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	if (fd < 0)
		fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	return fd;
}

static struct usw_aio_request *wait_for_one(struct usw_aio *aio)
{
	for (;;) {
		struct usw_aio_request *request = usw_aio_reap(aio);
		struct pollfd ready = {.fd = usw_aio_fd(aio), .events = POLLIN};

		if (request)
			return request;
		// Nothing is there: the descriptor must tell of the next, or this never ends.
		CHECK_EQ(poll(&ready, 1, 20000), 1);
	}
}

static void fill(char *block, uint64_t number)
{
	for (uint32_t i = 0; i < BLOCK_BYTES / USW_PAGE_BYTES; i++)
		check_fill(block + i * USW_PAGE_BYTES, CHECK_RANDOM, number * 16 + i);
}

/** Write, then read all blocks with as many under way as the queue takes. */
static void pass(struct usw_aio *aio, int fd, bool is_write)
{
	static char expected[BLOCK_BYTES];
	uint32_t submitted = 0;

	for (uint32_t done = 0; done < BLOCKS;) {
		while (submitted < BLOCKS && submitted - done < DEPTH) {
			uint32_t i = 0;

			while (requests[i].buffer)
				i++;
			requests[i] = (struct usw_aio_request){
				.fd = fd,
				.is_write = is_write,
				.buffer = blocks[i],
				.length_bytes = BLOCK_BYTES,
				.offset_bytes = (uint64_t)submitted * BLOCK_BYTES,
			};
			if (is_write)
				fill(blocks[i], submitted);
			CHECK_EQ(usw_aio_submit(aio, &requests[i]), 0);
			submitted++;
		}
		usw_aio_flush(aio);
		struct usw_aio_request *request = wait_for_one(aio);
		CHECK_EQ(request->result, 0);
		if (!is_write) {
			fill(expected, request->offset_bytes / BLOCK_BYTES);
			CHECK(memcmp(request->buffer, expected, BLOCK_BYTES) == 0);
		}
		request->buffer = NULL;
		done++;
	}
	CHECK_EQ(usw_aio_under_way(aio), 0);
	CHECK(usw_aio_reap(aio) == NULL);
}

static void test_everything_comes_back(struct usw_aio *aio)
{
	int fd = open_file();

	pass(aio, fd, true);
	pass(aio, fd, false);
	close(fd);
}

static void test_short_transfers_are_continued(struct usw_aio *aio)
{
	struct usw_aio_injection injection = {.longest_bytes = 1000};
	int fd = open_file();

	usw_aio_inject(aio, &injection);
	pass(aio, fd, true);
	injection.longest_bytes = 333;
	pass(aio, fd, false);
	usw_aio_inject(aio, NULL);
	pass(aio, fd, false);
	close(fd);
}

static int every_third_fails(void *context, const struct usw_aio_request *request)
{
	uint32_t *count = context;

	CHECK(request->length_bytes > 0);
	return ++*count % 3 == 0 ? -EIO : 0;
}

static void test_an_error_comes_back_with_its_request(struct usw_aio *aio)
{
	uint32_t count = 0;
	struct usw_aio_injection injection = {.before = every_third_fails, .context = &count};
	int fd = open_file();
	uint32_t failed = 0;

	CHECK_EQ(ftruncate(fd, 9 * BLOCK_BYTES), 0);
	usw_aio_inject(aio, &injection);
	for (uint32_t i = 0; i < 9; i++) {
		requests[i] = (struct usw_aio_request){.fd = fd,
						       .buffer = blocks[i],
						       .length_bytes = BLOCK_BYTES,
						       .offset_bytes = i * BLOCK_BYTES};
		CHECK_EQ(usw_aio_submit(aio, &requests[i]), 0);
	}
	usw_aio_flush(aio);
	for (uint32_t i = 0; i < 9; i++) {
		struct usw_aio_request *request = wait_for_one(aio);

		CHECK_EQ(request->result, (request - requests) % 3 == 2 ? -EIO : 0);
		failed += request->result != 0;
		request->buffer = NULL;
	}
	CHECK_EQ(failed, 3);
	usw_aio_inject(aio, NULL);
	close(fd);
}

static void test_the_systems_own_errors(struct usw_aio *aio)
{
	int fd = open_file();

	// Half a block is there: the rest cannot be read, and half is not enough.
	CHECK_EQ(ftruncate(fd, BLOCK_BYTES / 2), 0);
	requests[0] = (struct usw_aio_request){
		.fd = fd, .buffer = blocks[0], .length_bytes = BLOCK_BYTES};
	requests[1] = (struct usw_aio_request){
		.fd = -1, .buffer = blocks[1], .length_bytes = BLOCK_BYTES};
	CHECK_EQ(usw_aio_submit(aio, &requests[0]), 0);
	CHECK_EQ(usw_aio_submit(aio, &requests[1]), 0);
	usw_aio_flush(aio);
	for (uint32_t i = 0; i < 2; i++) {
		struct usw_aio_request *request = wait_for_one(aio);

		CHECK_EQ(request->result, request == &requests[0] ? -ENODATA : -EBADF);
		request->buffer = NULL;
	}
	close(fd);
}

/** A file system that is full, as small as a memfd can be sealed to. */
static void test_a_full_disk_is_an_error(struct usw_aio *aio)
{
	int fd = memfd_create("uffdswap-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(fd >= 0 && ftruncate(fd, BLOCK_BYTES) == 0);
	CHECK_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);
	requests[0] = (struct usw_aio_request){.fd = fd,
					       .is_write = true,
					       .buffer = blocks[0],
					       .length_bytes = BLOCK_BYTES,
					       .offset_bytes = BLOCK_BYTES};
	CHECK_EQ(usw_aio_submit(aio, &requests[0]), 0);
	usw_aio_flush(aio);
	CHECK(wait_for_one(aio)->result < 0);
	requests[0].buffer = NULL;
	close(fd);
}

static void test_depth_is_a_limit(struct usw_aio *aio)
{
	int fd = open_file();

	CHECK_EQ(ftruncate(fd, BLOCK_BYTES), 0);
	for (uint32_t i = 0; i < DEPTH; i++) {
		requests[i] = (struct usw_aio_request){
			.fd = fd, .buffer = blocks[i], .length_bytes = BLOCK_BYTES};
		CHECK_EQ(usw_aio_submit(aio, &requests[i]), 0);
	}
	struct usw_aio_request extra = {.fd = fd, .buffer = blocks[0], .length_bytes = BLOCK_BYTES};
	CHECK_EQ(usw_aio_submit(aio, &extra), -EAGAIN);
	usw_aio_flush(aio);
	for (uint32_t i = 0; i < DEPTH; i++)
		wait_for_one(aio)->buffer = NULL;
	close(fd);
}

/** Whoever destroys a queue gets his buffers back only when nobody writes into them any more. */
static void test_the_end_waits(enum usw_aio_engine engine)
{
	struct usw_aio *aio;
	int fd = open_file();

	CHECK_EQ(ftruncate(fd, DEPTH * BLOCK_BYTES), 0);
	CHECK_EQ(usw_aio_create(DEPTH, engine, &aio), 0);
	for (uint32_t i = 0; i < DEPTH; i++) {
		requests[i] = (struct usw_aio_request){.fd = fd,
						       .buffer = blocks[i],
						       .length_bytes = BLOCK_BYTES,
						       .offset_bytes = i * BLOCK_BYTES};
		CHECK_EQ(usw_aio_submit(aio, &requests[i]), 0);
	}
	usw_aio_destroy(aio);
	for (uint32_t i = 0; i < DEPTH; i++) {
		CHECK_EQ(requests[i].done_bytes, BLOCK_BYTES);
		requests[i].buffer = NULL;
	}
	usw_aio_destroy(NULL);
	close(fd);
}

static void test_engine(enum usw_aio_engine engine)
{
	struct usw_aio *aio;

	CHECK_EQ(usw_aio_create(DEPTH, engine, &aio), 0);
	// Threads are what is left where io_uring is refused; nothing is left in their place.
	CHECK(engine == USW_AIO_URING || usw_aio_engine(aio) == USW_AIO_THREADS);
	test_everything_comes_back(aio);
	test_short_transfers_are_continued(aio);
	test_an_error_comes_back_with_its_request(aio);
	test_the_systems_own_errors(aio);
	test_a_full_disk_is_an_error(aio);
	test_depth_is_a_limit(aio);
	usw_aio_destroy(aio);
	test_the_end_waits(engine);
}

int main(void)
{
	check_start(100);
	test_engine(USW_AIO_URING);
	test_engine(USW_AIO_THREADS);
	return 0;
}
