// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a page that has come in keeps its copy where that is worth its room, and only there.
 * Method: pages of every backend, codec, access and heat, settled as a fault settles them, with room in
 * RAM and without.
 */

#include "answer.h"
#include "check.h"
#include "session.h"

static struct usw_session session;
static struct usw_fault_thread *const thread = &session.threads[0];
static const struct usw_access reads = {.touches = true};
static const struct usw_access writes = {.touches = true, .writes = true};
static const struct usw_access ahead = {0};
static const struct usw_access ahead_of_write = {.writes = true};

static void begin(void)
{
	CHECK_EQ(usw_segments_create(&session.segments, 16), 0);
	CHECK_EQ(usw_vswap_create(&session.vswap, &session.segments, 4096), 0);
	thread->session = &session;
	session.limit_pages = 16384;
	session.fault_clock = 16 * 100000;
}

/** An ID whose content is an object of a codec. What that holds does not matter here. */
static uint32_t make_object(enum usw_codec codec)
{
	char bytes[64] = {0};
	uint64_t place;
	uint32_t id;

	CHECK_EQ(usw_vswap_alloc(&session.vswap, USW_BACKEND_MEMORY, 0, 0, &id), 0);
	CHECK_EQ(usw_segments_append(&session.segments, USW_LOG_LOOSE, id, bytes, sizeof(bytes),
				     codec, &place),
		 0);
	CHECK(usw_vswap_repoint(&session.vswap, id, USW_BACKEND_MEMORY, 0, USW_BACKEND_OBJECT,
				place));
	return id;
}

/** Whether a page that comes in for an access keeps its copy. It left so many faults ago. */
static bool keeps(uint32_t id, enum usw_backend backend, bool on_disk, struct usw_access access,
		  uint32_t heat, uint32_t faults_ago)
{
	uint32_t stamp = usw_session_stamp(&session) - faults_ago / 16;
	uint64_t now = usw_page_make(USW_PAGE_EVICTED, heat, id, stamp);
	usw_page_word word = now;

	usw_answer_settle(thread, &word, now, backend, on_disk, access);
	uint64_t after = atomic_load(&word);
	CHECK_EQ(usw_page_state(after), USW_PAGE_RESIDENT);
	usw_vswap_collect(&session.vswap);
	bool is_there = usw_word_backend(usw_vswap_peek(&session.vswap, id)) != USW_BACKEND_FREE;
	CHECK_EQ(usw_page_id(after), is_there ? id : USW_VSWAP_NONE);
	return is_there;
}

static bool keeps_object(enum usw_codec codec, bool on_disk, struct usw_access access)
{
	return keeps(make_object(codec), USW_BACKEND_OBJECT, on_disk, access, 0, 100000);
}

static void test_with_room_all_but_standby(void)
{
	uint32_t id;

	session.keep_copies = true;
	CHECK(keeps_object(USW_CODEC_LZ4, false, reads));
	CHECK(keeps_object(USW_CODEC_LZ4, false, writes));
	CHECK(keeps_object(USW_CODEC_DENSE, false, ahead));
	CHECK(keeps(make_object(USW_CODEC_DENSE), USW_BACKEND_OBJECT, false, reads, 2, 0));
	CHECK_EQ(usw_vswap_alloc(&session.vswap, USW_BACKEND_MEMORY, 0, 0, &id), 0);
	CHECK(!keeps(id, USW_BACKEND_MEMORY, false, reads, 0, 0));
}

static void test_without_room_what_is_packed_or_of_a_walk(void)
{
	session.keep_copies = false;
	session.copies_pay = true;
	CHECK(!keeps_object(USW_CODEC_LZ4, false, reads));
	CHECK(keeps_object(USW_CODEC_LZ4, false, ahead));
	CHECK(!keeps_object(USW_CODEC_LZ4, false, ahead_of_write));
	CHECK(keeps_object(USW_CODEC_DENSE, false, reads));
	CHECK(keeps_object(USW_CODEC_DENSE, false, ahead));
	CHECK(!keeps_object(USW_CODEC_DENSE, false, writes));
	CHECK(!keeps_object(USW_CODEC_DENSE, false, ahead_of_write));
	// Missed soon after it had left, or often: it stays for long.
	CHECK(!keeps(make_object(USW_CODEC_DENSE), USW_BACKEND_OBJECT, false, reads, 0, 16));
	CHECK(!keeps(make_object(USW_CODEC_DENSE), USW_BACKEND_OBJECT, false, reads, 2, 100000));
	CHECK(!keeps(make_object(USW_CODEC_DENSE), USW_BACKEND_OBJECT, false, ahead, 1, 100000));
	// What is on a disk takes no room.
	CHECK(keeps_object(USW_CODEC_LZ4, true, reads));
	CHECK(keeps_object(USW_CODEC_DENSE, true, writes));
}

/** Most have changed before they left: only one in sixteen is kept, to see if that is still so. */
static void test_where_copies_do_not_pay(void)
{
	uint32_t kept = 0;

	session.keep_copies = session.copies_pay = false;
	for (uint32_t i = 0; i < 64; i++) {
		session.fault_clock++;
		kept += keeps_object(USW_CODEC_DENSE, false, reads);
	}
	CHECK_EQ(kept, 4);
	CHECK(keeps_object(USW_CODEC_DENSE, true, reads));
	session.keep_copies = true;
	CHECK(keeps_object(USW_CODEC_LZ4, false, reads));
}

static void test_a_fault_says_what_it_is_for(void)
{
	struct usw_fault fault = {.flags = UFFD_PAGEFAULT_FLAG_WRITE};

	CHECK(usw_answer_access(&fault).touches && usw_answer_access(&fault).writes);
	fault.flags = 0;
	CHECK(usw_answer_access(&fault).touches && !usw_answer_access(&fault).writes);
}

int main(void)
{
	check_start(20);
	begin();
	test_with_room_all_but_standby();
	test_without_room_what_is_packed_or_of_a_walk();
	test_where_copies_do_not_pay();
	test_a_fault_says_what_it_is_for();
	return 0;
}
