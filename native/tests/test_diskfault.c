// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: whatever is asked for, in whatever order, each read is found by its page and brings that or
 * says that it cannot, and no buffer is used while it is needed.
 * Method: pages in a real disk tier, read alone, in spans and into reserve, with errors injected.
 */

#include "check.h"
#include "diskfault.h"

#define SEGMENTS 14u
#define PAGES 3000u
#define FIRST_ADDRESS (1ull << 33)

static struct usw_session session;
static struct usw_disk_faults *faults;
static struct usw_error error;
static uint32_t ids[PAGES];
static uint32_t requests;
static uint64_t requested_bytes;
static bool are_whole;
static struct usw_target *const target = (struct usw_target *)64; // never looked into
static char folder[] = "/var/tmp/uffdswap-test-XXXXXX";

static void on_damaged(void *context, uint32_t id)
{
	(void)context;
	usw_vswap_note_damaged(&session.vswap, id);
}

static void on_moved(void *context)
{
	(void)context;
}

static void on_report(void *context, enum usw_event_kind kind, uint32_t id, const char *text)
{
	(void)context;
	(void)kind;
	(void)id;
	(void)text;
}

static int count_requests(void *context, const struct usw_aio_request *request)
{
	const uint32_t *failing_from = context;

	requests++;
	requested_bytes += request->length_bytes;
	return failing_from && request->length_bytes > *failing_from ? -EIO : 0;
}

/** Pages of all kinds of lengths, side by side, or such that do not compress. */
static void fill(uint32_t number, char *page)
{
	check_fill(page, number % 4 || are_whole ? CHECK_RANDOM : CHECK_TEXT, number);
}

static void store(uint32_t number)
{
	static char page[USW_PAGE_BYTES], object[USW_PAGE_BYTES];
	struct usw_codec_hint hint = {0};
	enum usw_codec codec;
	uint64_t place;

	fill(number, page);
	uint32_t length = usw_codec_compress(&hint, page, object, &codec);
	CHECK_EQ(usw_vswap_alloc(&session.vswap, USW_BACKEND_MEMORY, 1,
				 usw_codec_hash(page, CHECK_SEED), &ids[number]),
		 0);
	CHECK_EQ(usw_segments_append(&session.segments, USW_LOG_LOOSE, ids[number], object, length,
				     codec, &place),
		 0);
	CHECK(usw_vswap_repoint(&session.vswap, ids[number], USW_BACKEND_MEMORY, 1,
				USW_BACKEND_OBJECT, place));
}

static void world_init(bool is_sealed)
{
	const struct usw_tiers_hooks hooks = {
		.moved = on_moved, .damaged = on_damaged, .report = on_report};
	const struct usw_tiers_plan plan = {.demote_bytes = SEGMENTS * USW_SEGMENT_BYTES};

	memset(&session, 0, sizeof(session));
	session.hash_seed = CHECK_SEED;
	CHECK_EQ(usw_segments_create(&session.segments, SEGMENTS + 1), 0);
	CHECK_EQ(usw_vswap_create(&session.vswap, &session.segments, 4096), 0);
	CHECK_EQ(usw_tiers_init(&session.tiers, &session.segments, is_sealed, &hooks), 0);
	for (uint32_t i = 0; i < PAGES; i++)
		store(i);
	CHECK_THAT(usw_tiers_add(&session.tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	usw_segments_close_open(&session.segments);
	while (usw_tiers_step(&session.tiers, &plan) || session.segments.used_segments)
		usleep(200);
	faults = usw_diskfault_create(&session);
	CHECK(faults);
	requests = 0;
}

static void world_deinit(void)
{
	usw_diskfault_destroy(faults);
	usw_tiers_deinit(&session.tiers);
	usw_vswap_destroy(&session.vswap);
	usw_segments_destroy(&session.segments);
}

static struct usw_disk_read *ask(uint32_t number, bool is_ahead)
{
	struct usw_fault fault = {.page = FIRST_ADDRESS + number * USW_PAGE_BYTES,
				  .since_ns = usw_now_ns()};
	struct usw_disk_place place;

	CHECK(usw_content_is_on_disk(&session, ids[number], &place));
	return usw_diskfault_begin(faults, &session, target, &fault, is_ahead, ids[number], &place);
}

static uint32_t number_of(const struct usw_disk_read *read)
{
	return (uint32_t)((read->fault.page - FIRST_ADDRESS) / USW_PAGE_BYTES);
}

static void check_page(const struct usw_disk_read *read)
{
	static char page[USW_PAGE_BYTES];

	fill(number_of(read), page);
	CHECK(memcmp(page, usw_diskfault_page(read), USW_PAGE_BYTES) == 0);
}

static void wait_for_all(void)
{
	while (usw_aio_under_way(faults->aio)) {
		usw_diskfault_collect(faults);
		usleep(50);
	}
	usw_diskfault_collect(faults);
}

/** Open and end all that is there; how many were as they should be. */
static uint32_t end_all(void)
{
	const char *why;
	uint32_t right = 0;

	wait_for_all();
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++) {
		struct usw_disk_read *read = &faults->at[i];

		if (read->stage == USW_READ_IDLE)
			continue;
		if (read->stage == USW_READ_READY ||
		    usw_diskfault_open(faults, &session, read, &why) == 0) {
			check_page(read);
			right++;
		}
		usw_diskfault_done(faults, read);
	}
	CHECK_EQ(faults->busy, 0);
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++)
		CHECK(!faults->at[i].is_held);
	return right;
}

static void test_pages_in_a_row_are_one_request(bool is_sealed)
{
	const struct usw_aio_injection counting = {.before = count_requests};

	world_init(is_sealed);
	usw_aio_inject(faults->aio, &counting);
	for (uint32_t i = 0; i < 32; i++)
		CHECK(ask(100 + i, true));
	usw_diskfault_flush(faults);
	CHECK_EQ(end_all(), 32);
	CHECK_EQ(requests, 1);
	for (uint32_t i = 0; i < 32; i++)
		CHECK(ask(3 * i, true)); // far from each other
	usw_diskfault_flush(faults);
	CHECK_EQ(end_all(), 32);
	CHECK_THAT(requests, >, 16);
	world_deinit();
}

/** A whole page is one block on the disk, not two: no more is read than a page, alone or in a row. */
static void test_a_whole_page_is_one_block(bool is_sealed)
{
	const struct usw_aio_injection counting = {.before = count_requests};

	are_whole = true;
	world_init(is_sealed);
	usw_aio_inject(faults->aio, &counting);
	requested_bytes = 0;
	for (uint32_t i = 0; i < 64; i++)
		CHECK(ask(5 * i, false));
	usw_diskfault_flush(faults);
	CHECK_EQ(requests, 64);
	CHECK_EQ(requested_bytes, 64 * USW_PAGE_BYTES);
	CHECK_EQ(end_all(), 64);
	for (uint32_t i = 0; i < 32; i++)
		CHECK(ask(32 + i, true));
	usw_diskfault_flush(faults);
	CHECK_EQ(requests, 65);
	CHECK_EQ(requested_bytes, 96 * USW_PAGE_BYTES);
	CHECK_EQ(end_all(), 32);
	world_deinit();
	are_whole = false;
}

/**
 * What was read and is opened after its segment has come up: the tag of a whole page is gone, and the
 * fault begins anew; others have theirs with them.
 */
static void test_what_comes_up_meanwhile(bool whole)
{
	const struct usw_tiers_plan plan = {.promote_bytes = UINT64_MAX};
	struct usw_tags *tags = &session.tiers.tags;
	const char *why;

	are_whole = whole;
	world_init(true);
	struct usw_disk_read *read = ask(300, false);
	usw_diskfault_flush(faults);
	wait_for_all();
	for (uint32_t i = 1; i < session.segments.high_water; i++)
		atomic_store(&usw_segments_header(&session.segments, i)->is_recalled, true);
	while (usw_tiers_step(&session.tiers, &plan) || session.segments.disk_segments)
		usleep(200);
	CHECK_EQ(usw_diskfault_open(faults, &session, read, &why), whole ? -EAGAIN : 0);
	CHECK_EQ(usw_space_held_bytes(&tags->space), 0);
	CHECK_EQ(tags->held_bytes, 0);
	if (!whole)
		check_page(read);
	usw_diskfault_done(faults, read);
	world_deinit();
	are_whole = false;
}

static void test_who_waits_is_read_alone(void)
{
	static uint32_t longest = 3 * USW_PAGE_BYTES;
	const struct usw_aio_injection failing = {.before = count_requests, .context = &longest};
	const char *why;

	world_init(true);
	usw_aio_inject(faults->aio, &failing); // only spans fail
	for (uint32_t i = 0; i < 8; i++)
		CHECK(ask(40 + i, true));
	struct usw_disk_read *waiting = ask(48, false);
	usw_diskfault_flush(faults);
	CHECK_EQ(requests, 2);
	wait_for_all();
	CHECK_EQ(usw_diskfault_open(faults, &session, waiting, &why), 0);
	check_page(waiting);
	usw_diskfault_done(faults, waiting);
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++)
		if (faults->at[i].stage == USW_READ_DONE)
			CHECK_EQ(usw_diskfault_open(faults, &session, &faults->at[i], &why),
				 -EAGAIN);
	CHECK_EQ(end_all(), 0);
	world_deinit();
}

static void test_a_page_that_waits_for_room_holds_up_no_other(void)
{
	const char *why;
	uint32_t asked = 0;

	world_init(true);
	for (uint32_t i = 0; i < 32; i++)
		CHECK(ask(200 + i, true));
	usw_diskfault_flush(faults);
	wait_for_all();
	struct usw_disk_read *left = NULL;
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++) {
		struct usw_disk_read *read = &faults->at[i];

		if (read->stage != USW_READ_DONE)
			continue;
		CHECK_EQ(usw_diskfault_open(faults, &session, read, &why), 0);
		if (number_of(read) == 210)
			left = read;
		else
			usw_diskfault_done(faults, read);
	}
	CHECK(left);
	while (ask(1000 + 2 * asked, true))
		asked++;
	CHECK_EQ(asked, USW_DISK_READS_MAX - 1);
	usw_diskfault_flush(faults);
	wait_for_all();
	check_page(left);
	usw_diskfault_done(faults, left);
	CHECK_EQ(end_all(), USW_DISK_READS_MAX - 1);
	world_deinit();
}

static void test_reserve_waits_to_be_called_and_not_for_ever(void)
{
	world_init(true);
	for (uint32_t i = 0; i < 16; i++)
		ask(500 + i, true)->is_reserve = true;
	usw_diskfault_flush(faults);
	while (usw_aio_under_way(faults->aio))
		usw_diskfault_collect(faults);
	CHECK(!faults->is_ripe);
	struct usw_disk_read *called =
		usw_diskfault_find(faults, target, FIRST_ADDRESS + 503 * USW_PAGE_BYTES);
	CHECK(called);
	usw_diskfault_call(faults, called);
	CHECK(faults->is_ripe);
	usleep(50000);
	usw_diskfault_collect(faults);
	CHECK_EQ(faults->busy, 1);
	CHECK_EQ(end_all(), 1);

	// Who waits takes the place of what is only in reserve.
	uint32_t asked = 0;
	for (struct usw_disk_read *read; (read = ask(1000 + 2 * asked, true)); asked++)
		read->is_reserve = true;
	CHECK_EQ(asked, USW_DISK_READS_MAX);
	usw_diskfault_flush(faults);
	while (usw_aio_under_way(faults->aio))
		usw_diskfault_collect(faults);
	CHECK(ask(7, false));
	usw_diskfault_flush(faults);
	CHECK_EQ(end_all(), 1);
	world_deinit();
}

/** A read is found by its page, and nothing is found where there is none. */
static void check_found(uint32_t number)
{
	uint64_t page = FIRST_ADDRESS + number * USW_PAGE_BYTES;
	const struct usw_disk_read *found = usw_diskfault_find(faults, target, page);
	bool is_there = false;

	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++) {
		const struct usw_disk_read *read = &faults->at[i];

		is_there |= read->stage != USW_READ_IDLE && read->target == target &&
			    read->fault.page == page;
	}
	CHECK_EQ(found != NULL, is_there);
	CHECK(!found || (found->target == target && found->fault.page == page));
}

/** Everything at once, by chance: alone, ahead, in reserve, left lying, forgotten. */
static void test_any_order(void)
{
	uint64_t random = 1;
	uint32_t right = 0;
	const char *why;

	world_init(true);
	while (right < 3000) {
		uint32_t number = (uint32_t)(check_random(&random) % (PAGES - 40));
		uint32_t count = (uint32_t)(check_random(&random) % 33);

		for (uint32_t i = 0; i < count; i++) {
			struct usw_disk_read *read = ask(number + i, check_random(&random) % 12);

			if (read && read->is_ahead)
				read->is_reserve = check_random(&random) % 4 == 0;
		}
		usw_diskfault_flush(faults);
		if (check_random(&random) % 50 == 0)
			usw_diskfault_forget(faults, target);
		usw_diskfault_collect(faults);
		for (uint32_t i = 0; i < count; i++)
			check_found((number + i + 16) % PAGES);
		for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++) {
			struct usw_disk_read *read = &faults->at[i];

			if (!usw_diskfault_is_there(read))
				continue;
			if (read->stage == USW_READ_DONE)
				CHECK_EQ(usw_diskfault_open(faults, &session, read, &why), 0);
			if (check_random(&random) % 4 == 0)
				continue; // it waits for room
			check_page(read);
			usw_diskfault_done(faults, read);
			right++;
		}
	}
	end_all();
	world_deinit();
}

int main(void)
{
	check_start(120);
	CHECK(mkdtemp(folder));
	test_pages_in_a_row_are_one_request(true);
	test_pages_in_a_row_are_one_request(false);
	test_a_whole_page_is_one_block(true);
	test_a_whole_page_is_one_block(false);
	test_what_comes_up_meanwhile(true);
	test_what_comes_up_meanwhile(false);
	test_who_waits_is_read_alone();
	test_a_page_that_waits_for_room_holds_up_no_other();
	test_reserve_waits_to_be_called_and_not_for_ever();
	test_any_order();
	CHECK_EQ(rmdir(folder), 0);
	return 0;
}
