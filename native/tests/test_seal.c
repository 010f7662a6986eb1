// SPDX-License-Identifier: MIT

/**
 * @file
 * Seals: what was sealed comes back; what was changed, moved, cut or replayed does not.
 */

#include "check.h"
#include "seal.h"

static char plain[USW_PAGE_BYTES];
static char sealed[USW_PAGE_BYTES];
static struct usw_seal_tag tag;
static char opened[USW_PAGE_BYTES];

static const struct usw_seal_bond bond = {
	.generation = 0x123456789a,
	.index = 17,
	.id = 4711,
	.tier = 1,
	.slot = 99,
	.segment = 12,
	.length_bytes = 1234,
};

static void test_all_lengths_come_back(struct usw_sealer *sealer)
{
	struct usw_seal_bond other = bond;

	for (uint32_t length = 1; length <= USW_PAGE_BYTES; length += length < 40 ? 1 : 507) {
		other.length_bytes = length;
		other.generation++;
		check_fill(plain, CHECK_RANDOM, length);
		memset(opened, 0, sizeof(opened));
		CHECK_EQ(usw_seal(sealer, &other, plain, sealed, &tag), 0);
		CHECK(length < 16 || memcmp(sealed, plain, length) != 0);
		CHECK_EQ(usw_unseal(sealer, &other, sealed, &tag, opened), 0);
		CHECK(memcmp(opened, plain, length) == 0);
	}
}

/** In place, as a segment is sealed where it was copied to. */
static void test_in_place(struct usw_sealer *sealer)
{
	check_fill(plain, CHECK_TEXT, 5);
	memcpy(sealed, plain, sizeof(plain));
	CHECK_EQ(usw_seal(sealer, &bond, sealed, sealed, &tag), 0);
	CHECK_EQ(usw_unseal(sealer, &bond, sealed, &tag, sealed), 0);
	CHECK(memcmp(sealed, plain, bond.length_bytes) == 0);
}

static void test_every_flipped_bit_is_refused(struct usw_sealer *sealer)
{
	check_fill(plain, CHECK_TEXT, 6);
	CHECK_EQ(usw_seal(sealer, &bond, plain, sealed, &tag), 0);
	for (uint32_t bit = 0; bit < bond.length_bytes * 8; bit += 3) {
		sealed[bit / 8] ^= (char)(1 << bit % 8);
		CHECK_EQ(usw_unseal(sealer, &bond, sealed, &tag, opened), -EBADMSG);
		sealed[bit / 8] ^= (char)(1 << bit % 8);
	}
	for (uint32_t bit = 0; bit < USW_SEAL_TAG_BYTES * 8; bit++) {
		tag.words[bit / 64] ^= UINT64_C(1) << bit % 64;
		CHECK_EQ(usw_unseal(sealer, &bond, sealed, &tag, opened), -EBADMSG);
		tag.words[bit / 64] ^= UINT64_C(1) << bit % 64;
	}
	CHECK_EQ(usw_unseal(sealer, &bond, sealed, &tag, opened), 0);
}

/** Each part of the bond counts: another place, another owner, another time. */
static void test_it_opens_only_where_it_was_sealed(struct usw_sealer *sealer)
{
	check_fill(plain, CHECK_TEXT, 7);
	CHECK_EQ(usw_seal(sealer, &bond, plain, sealed, &tag), 0);
	for (int part = 0; part < 6; part++) {
		struct usw_seal_bond other = bond;

		switch (part) {
		case 0:
			other.generation++;
			break;
		case 1:
			other.index++;
			break;
		case 2:
			other.id++;
			break;
		case 3:
			other.tier++;
			break;
		case 4:
			other.slot++;
			break;
		default:
			other.segment++;
		}
		CHECK_EQ(usw_unseal(sealer, &other, sealed, &tag, opened), -EBADMSG);
	}
	CHECK_EQ(usw_unseal(sealer, &bond, sealed, &tag, opened), 0);
}

static void test_another_key_opens_nothing(struct usw_sealer *sealer, enum usw_cipher cipher)
{
	struct usw_seal_key key;
	struct usw_sealer other;

	CHECK_EQ(usw_seal(sealer, &bond, plain, sealed, &tag), 0);
	CHECK_EQ(usw_seal_key_create(&key, cipher), 0);
	CHECK_EQ(usw_sealer_init(&other, &key), 0);
	CHECK_EQ(usw_unseal(&other, &bond, sealed, &tag, opened), -EBADMSG);
	usw_sealer_deinit(&other);
	usw_seal_key_destroy(&key);
	usw_seal_key_destroy(&key);
	CHECK(!key.bytes);
}

/** No child of the agent and no core file has the key. */
static void test_the_key_stays_here(const struct usw_seal_key *key)
{
	int status = 0;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		for (uint32_t i = 0; i < USW_SEAL_KEY_BYTES; i++)
			if (key->bytes[i])
				_exit(1);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK_EQ(status, 0);
}

static void test_cipher(enum usw_cipher cipher)
{
	struct usw_seal_key key;
	struct usw_sealer sealer;

	CHECK_EQ(usw_seal_key_create(&key, cipher), 0);
	CHECK_EQ(usw_sealer_init(&sealer, &key), 0);
	test_all_lengths_come_back(&sealer);
	test_in_place(&sealer);
	test_every_flipped_bit_is_refused(&sealer);
	test_it_opens_only_where_it_was_sealed(&sealer);
	test_another_key_opens_nothing(&sealer, cipher);
	test_the_key_stays_here(&key);
	usw_sealer_deinit(&sealer);
	usw_seal_key_destroy(&key);
}

int main(void)
{
	check_start(100);
	test_cipher(USW_CIPHER_AES_256_GCM);
	test_cipher(USW_CIPHER_CHACHA20_POLY1305);
	return 0;
}
