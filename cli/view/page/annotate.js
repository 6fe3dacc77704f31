export class Annotation { constructor() {} open() {} key() { return false; } }
