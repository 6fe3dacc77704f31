export class Runs { constructor() {} showPair() {} open() {} }
