//! The Merkle tree of RFC 6962, section 2.1: root, inclusion proofs and their check, over leaves that are byte strings.
//!
//! Knows nothing of what the leaves mean. Invariant: leaf and inner hashes are told apart by their prefix byte, so no inner
//! node can be shown as a leaf.

use sha2::{Digest, Sha256};

pub type Hash = [u8; 32];

/// All levels of a tree, leaves first; the last node of an odd level stands alone and moves up as it is.
#[derive(Debug, Clone)]
pub struct MerkleTree {
    levels: Vec<Vec<Hash>>,
}

impl MerkleTree {
    pub fn new<L: AsRef<[u8]>>(leaves: impl IntoIterator<Item = L>) -> Self {
        let mut levels: Vec<Vec<Hash>> = vec![leaves.into_iter().map(|leaf| leaf_hash(leaf.as_ref())).collect()];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let above = below.chunks(2).map(|pair| match pair {
                [left, right] => node_hash(left, right),
                alone => alone[0],
            });
            let above = above.collect();
            levels.push(above);
        }
        MerkleTree { levels }
    }

    pub fn leaf_count(&self) -> u64 {
        self.levels[0].len() as u64
    }

    /// MTH(D[n]); of no leaves, the hash of nothing.
    pub fn root(&self) -> Hash {
        match self.levels.last().and_then(|level| level.first()) {
            Some(root) => *root,
            None => Sha256::digest(b"").into(),
        }
    }

    /// PATH(m, D[n]): the siblings from the leaf upwards. `None` when there is no such leaf.
    pub fn inclusion_proof(&self, leaf_index: u64) -> Option<Vec<Hash>> {
        if leaf_index >= self.leaf_count() {
            return None;
        }
        let mut index = leaf_index as usize;
        let mut proof = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            // Without a sibling the node moves up by itself and adds nothing to the path.
            proof.extend(level.get(index ^ 1));
            index >>= 1;
        }
        Some(proof)
    }
}

/// Whether `proof` shows that `leaf` is number `leaf_index` of the `leaf_count` leaves under `root` (RFC 9162, section 2.1.3.2,
/// which states the check that RFC 6962 leaves open).
pub fn is_included(leaf: &[u8], leaf_index: u64, leaf_count: u64, proof: &[Hash], root: &Hash) -> bool {
    if leaf_index >= leaf_count {
        return false;
    }
    let (mut index, mut last) = (leaf_index, leaf_count - 1);
    let mut hash = leaf_hash(leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if index & 1 == 1 || index == last {
            hash = node_hash(sibling, &hash);
            while index & 1 == 0 && index != 0 {
                index >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        index >>= 1;
        last >>= 1;
    }
    last == 0 && hash == *root
}

fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update([0x00]).chain_update(leaf).finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([0x01]).chain_update(left).chain_update(right).finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The leaves of the test vectors of the Certificate Transparency reference implementation.
    const LEAVES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

    fn leaves(count: usize) -> Vec<Vec<u8>> {
        LEAVES[..count].iter().map(|leaf| hex::decode(leaf).unwrap()).collect()
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        for (count, wish) in roots.iter().enumerate() {
            assert_eq!(hex::encode(MerkleTree::new(leaves(count)).root()), *wish, "{count} leaves");
        }
    }

    #[test]
    fn proofs_are_those_of_certificate_transparency() {
        let cases: [(u64, usize, &[&str]); 4] = [
            (0, 1, &[]),
            (
                0,
                8,
                &[
                    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
                ],
            ),
            (
                5,
                8,
                &[
                    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
                ],
            ),
            (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
        ];
        for (index, count, wish) in cases {
            let proof = MerkleTree::new(leaves(count)).inclusion_proof(index).unwrap();
            assert_eq!(proof.iter().map(hex::encode).collect::<Vec<_>>(), wish, "leaf {index} of {count}");
        }
    }

    /// The definition of RFC 6962, word for word: split at the largest power of two below the count.
    fn root_by_definition(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => Sha256::digest(b"").into(),
            [leaf] => leaf_hash(leaf),
            leaves => {
                let split = leaves.len().next_power_of_two() / 2;
                node_hash(&root_by_definition(&leaves[..split]), &root_by_definition(&leaves[split..]))
            }
        }
    }

    #[test]
    fn there_is_no_proof_for_a_leaf_that_is_not_there() {
        assert_eq!(MerkleTree::new(leaves(0)).inclusion_proof(0), None);
        assert_eq!(MerkleTree::new(leaves(3)).inclusion_proof(3), None);
        let root = MerkleTree::new(leaves(1)).root();
        assert!(!is_included(b"", 1, 1, &[], &root));
        assert!(!is_included(b"", 0, 0, &[], &root));
    }

    proptest! {
        #[test]
        fn the_tree_is_the_one_of_the_definition(leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..70)) {
            prop_assert_eq!(MerkleTree::new(&leaves).root(), root_by_definition(&leaves));
        }

        #[test]
        fn every_leaf_is_proven_in_its_place_and_in_no_other(count in 1usize..70, index: prop::sample::Index, other: prop::sample::Index, bit in 0usize..256) {
            let leaves: Vec<Vec<u8>> = (0..count).map(|leaf| leaf.to_be_bytes().to_vec()).collect();
            let tree = MerkleTree::new(&leaves);
            let (index, other, count) = (index.index(count) as u64, other.index(count) as u64, count as u64);
            let leaf = &leaves[index as usize];
            let proof = tree.inclusion_proof(index).unwrap();
            prop_assert!(is_included(leaf, index, count, &proof, &tree.root()));
            prop_assert_eq!(is_included(leaf, other, count, &proof, &tree.root()), index == other);
            prop_assert_eq!(is_included(&leaves[other as usize], index, count, &proof, &tree.root()), index == other);

            let mut longer = proof.clone();
            longer.push([0; 32]);
            prop_assert!(!is_included(leaf, index, count, &longer, &tree.root()));
            if !proof.is_empty() {
                prop_assert!(!is_included(leaf, index, count, &proof[1..], &tree.root()));
                let mut flipped = proof.clone();
                let hash = other as usize % proof.len();
                flipped[hash][bit / 8] ^= 1 << (bit % 8);
                prop_assert!(!is_included(leaf, index, count, &flipped, &tree.root()));
            }
        }
    }
}
