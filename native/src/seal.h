// SPDX-License-Identifier: MIT

/**
 * @file
 * Encryption at rest: what is written to a disk is sealed, one object at a time.
 *
 * Swapped memory holds secrets. A key is drawn when the session begins, never leaves its memory and
 * is wiped at the end, so a disk that is stolen, or a file that is left, tells nothing. Sealed is
 * also proved: a seal is bound to the virtual swap ID and to the exact place and moment of the
 * write, so that a bit flipped, an object moved or an old one put back is refused.
 *
 * AES-256-GCM where the processor has instructions for it, else ChaCha20-Poly1305. The nonce is
 * (generation of the move 64, index in the segment 32): generations are never used twice under one
 * key, and a move seals each object once.
 *
 * A key is shared and read-only; a sealer belongs to one thread and allocates nothing after
 * usw_sealer_init().
 */

#ifndef USW_SEAL_H
#define USW_SEAL_H

#include "base.h"

#define USW_SEAL_KEY_BYTES 32u
/** What proves a sealed object, and follows it on a disk if it is not a whole page (tag.h). */
#define USW_SEAL_TAG_BYTES 16u

enum usw_cipher {
	USW_CIPHER_AES_256_GCM = 0,
	USW_CIPHER_CHACHA20_POLY1305 = 1,
};

struct usw_seal_key {
	unsigned char *bytes; /* a page of its own: in no core file, in no swap, in no child */
	enum usw_cipher cipher;
};

struct usw_seal_tag {
	uint64_t words[USW_SEAL_TAG_BYTES / sizeof(uint64_t)];
};

struct usw_sealer {
	void *context; /* EVP_CIPHER_CTX */
};

/** What a seal is bound to. All of it must be the same to open it. */
struct usw_seal_bond {
	uint64_t generation;
	uint32_t index;
	uint32_t id;
	uint32_t tier;
	uint32_t slot;
	uint32_t segment;
	uint32_t length_bytes;
};

/** The cipher that is fast here. */
enum usw_cipher usw_seal_choose_cipher(void);

int usw_seal_key_create(struct usw_seal_key *key, enum usw_cipher cipher);
/** Wipes it. Twice is fine. */
void usw_seal_key_destroy(struct usw_seal_key *key);

int usw_sealer_init(struct usw_sealer *sealer, const struct usw_seal_key *key);
void usw_sealer_deinit(struct usw_sealer *sealer);

/** Encrypt `bond->length_bytes` from `plain` into `sealed`, which may be the same; and their tag. */
int usw_seal(struct usw_sealer *sealer, const struct usw_seal_bond *bond, const void *plain,
	     void *sealed, struct usw_seal_tag *ret_tag);

/**
 * The reverse. -EBADMSG: not what was sealed under this bond; then `plain` holds nothing of use.
 */
int usw_unseal(struct usw_sealer *sealer, const struct usw_seal_bond *bond, const void *sealed,
	       const struct usw_seal_tag *tag, void *plain);

#endif /* USW_SEAL_H */
